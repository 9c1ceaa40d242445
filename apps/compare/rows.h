#pragma once

#include <string>
#include <vector>

#include "flatquant/packed/scheme.h"

namespace flatquant {

// One quantized model of a comparison: how transforms and clips are chosen, and how
// codes are.
struct CompareRow {
  std::string method;   // of MethodNames()
  std::string weights;  // "rtn", "gptq" or "learned"

  // What the table calls the method: "gptq" for plain GPTQ, as papers do.
  std::string Name() const;
  // The row's folder and files in the output folder: "quarot-gptq".
  std::string Folder() const;

  friend bool operator==(const CompareRow&, const CompareRow&) = default;
};

// Each method with each way to choose codes, in this order, no row twice. The method
// "gptq" is none of its own: it stands for method rtn, which changes nothing, with
// weights gptq. Weights of 16 bits have no codes to choose, so that each method then
// has one row.
// Errors: compare.unknown_method (names those that there are).
std::vector<CompareRow> CompareRows(const std::vector<std::string>& methods,
                                    const std::vector<std::string>& weights, const Scheme& scheme);

// "a,b,c" in parts. Errors: compare.bad_list for an empty part.
std::vector<std::string> SplitNames(const std::string& option, const std::string& text);

}  // namespace flatquant
