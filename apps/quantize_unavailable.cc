// The commands that need the compression half, in a build without it: the sibling of
// quantize.cc, convert.cc, compare.cc and flatness.cc, which says what to do.

#include <CLI/CLI.hpp>
#include <string>

#include "apps/commands.h"
#include "flatquant/base/error.h"

namespace flatquant {
namespace {

Work Unavailable(CLI::App& command) {
  command.allow_extras();
  command.footer("This build can run models but not make them: it has no LibTorch.");
  return [name = command.get_name()] {
    throw Error("quantize.unavailable", "flatquant " + name, "this build has no compression half",
                "configure with -DFLATQUANT_COMPRESS=ON, which needs LibTorch");
  };
}

}  // namespace

Work SetUpQuantize(CLI::App& command) { return Unavailable(command); }

Work SetUpCompare(CLI::App& command) { return Unavailable(command); }

Work SetUpConvert(CLI::App& command) { return Unavailable(command); }

Work SetUpFlatness(CLI::App& command) { return Unavailable(command); }

}  // namespace flatquant
