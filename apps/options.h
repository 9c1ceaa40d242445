#pragma once

#include <CLI/App.hpp>
#include <CLI/Validators.hpp>
#include <filesystem>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/model/config.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {

// Options that several subcommands share, so that they look the same everywhere.

// -t, --threads; 0 takes every usable core.
void AddThreads(CLI::App& command, int* threads);

// --json [FILE]; "-", the default of the value, is stdout.
void AddJson(CLI::App& command, std::string* destination);

// --precision f32|f16|bf16 of what is not quantized.
void AddPrecision(CLI::App& command, Precision* precision);

// --device cpu|cuda|cuda:N; Engine::Open checks the name.
void AddDevice(CLI::App& command, std::string* device);

// A check of a number's bounds, and of membership in a list of names, that leave
// the help text alone (the bounds are named when they are missed).
template <typename T>
CLI::Validator Bounds(T low, T high) {
  return CLI::Range(low, high).description("");
}
template <typename Names>
CLI::Validator OneOf(const Names& names) {
  return CLI::IsMember(names).description("");
}

// A model directory, the command's positional argument.
void AddModelDirectory(CLI::App& command, const char* name, const char* help,
                       std::string* directory);

// Turns a parser that throws Error into a check of an option's text, so that a
// malformed value is a usage error. Parse: void(const std::string&).
template <typename Parse>
auto CheckedBy(Parse parse) {
  return [parse](const std::string& text) -> std::string {
    try {
      parse(text);
      return {};
    } catch (const Error& error) {
      return error.what();
    }
  };
}

// The window length to use: what was asked for, or with 0 the usual 2048, as far
// as the model's context allows. Errors: usage.seqlen when more was asked for
// than the model can take.
int64_t WindowLength(int64_t asked, const ModelConfig& config);

// Refuses what is no directory of a model, before anything else is said about
// its files. Errors: model.no_directory.
void CheckModelDirectory(const std::filesystem::path& directory);

}  // namespace flatquant
