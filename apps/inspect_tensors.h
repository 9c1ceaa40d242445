#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flatquant/base/tensor.h"

namespace flatquant {

using TensorMap = std::map<std::string, Tensor, std::less<>>;

// A table of tensors, one line each: name, type, shape, bytes. Names may come
// from a hostile file and are made printable. Unless `all`, tensors that differ
// only in the first number of their names become one line:
//   model.layers.{0-11}.mlp.up_proj.weight  BF16 [1376, 512]  x12  16.9 MB
std::vector<std::string> TensorTable(const TensorMap& tensors, bool all);

// [{"name","dtype","shape","bytes"}], always complete.
nlohmann::ordered_json TensorsJson(const TensorMap& tensors);

uint64_t TotalBytes(const TensorMap& tensors);
uint64_t TotalElements(const TensorMap& tensors);

// "0-3,5,7-8" of ascending numbers.
std::string Ranges(const std::vector<uint64_t>& numbers);

}  // namespace flatquant
