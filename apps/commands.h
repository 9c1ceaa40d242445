#pragma once

#include <CLI/App.hpp>
#include <functional>

namespace flatquant {

// What a subcommand does once the command line is parsed.
using Work = std::function<void()>;

// Each adds a subcommand's options and examples to `command` and returns its
// work, which throws Error and anything else that main() turns into one line.
Work SetUpQuantize(CLI::App& command);
Work SetUpEval(CLI::App& command);
Work SetUpCompare(CLI::App& command);
Work SetUpConvert(CLI::App& command);
Work SetUpFlatness(CLI::App& command);
Work SetUpReport(CLI::App& command);
Work SetUpGenerate(CLI::App& command);
Work SetUpTokenize(CLI::App& command);
Work SetUpInspect(CLI::App& command);
Work SetUpBench(CLI::App& command);

}  // namespace flatquant
