// flatquant quantize in a build without the compression half: the sibling of
// quantize.cc, which says what to do.

#include <CLI/CLI.hpp>

#include "apps/commands.h"
#include "flatquant/base/error.h"

namespace flatquant {

Work SetUpQuantize(CLI::App& command) {
  command.allow_extras();
  command.footer("This build can run models but not make them: it has no LibTorch.");
  return [] {
    throw Error("quantize.unavailable", "flatquant quantize", "this build has no compression half",
                "configure with -DFLATQUANT_COMPRESS=ON, which needs LibTorch");
  };
}

}  // namespace flatquant
