#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

// Sections of the page made of what commands wrote as JSON. All throw
// nlohmann::json::exception where that is not what such a command writes.
namespace flatquant {

// "recovery" of 'eval --vs': an array of figures.
std::string RecoverySection(const nlohmann::json& recovery);

// "results" of 'eval': an array of figures with their errors.
std::string EvaluationSection(const nlohmann::json& results);

// "kl" of 'eval --kl-base': an array of comparisons.
std::string DivergenceSection(const nlohmann::json& kl);

// The figures of a run of 'quantize', as report.json and --json have them: loss per block
// and, where they are there, warnings, flatness and the clips of weights.
// plots: draw, which needs gnuplot.
std::string TrainingSection(const nlohmann::json& run, bool plots);

// What took how long, and how much memory: rows of a table, of any command's JSON.
std::vector<std::vector<std::string>> Timings(const nlohmann::json& contents);

}  // namespace flatquant
