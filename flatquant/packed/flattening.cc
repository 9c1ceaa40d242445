#include "flatquant/packed/flattening.h"

#include <cstring>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant {

Tensor PackExtraColumns(std::span<const ExtraColumn> columns) {
  if (columns.empty()) return {};
  std::vector<int32_t> values;
  for (const ExtraColumn& column : columns) {
    values.push_back(column.channel);
    values.push_back(column.piece);
  }
  return Tensor::Own(DType::kI32, {static_cast<int64_t>(columns.size()), 2}, std::move(values));
}

std::vector<ExtraColumn> UnpackExtraColumns(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  FLATQUANT_CHECK(tensor.dtype == DType::kI32 && tensor.shape.size() == 2 && tensor.shape[1] == 2);
  std::vector<ExtraColumn> columns(static_cast<size_t>(tensor.shape[0]));
  for (size_t i = 0; i < columns.size(); ++i) {
    int32_t row[2];
    std::memcpy(row, tensor.data + i * sizeof(row), sizeof(row));
    columns[i] = {row[0], row[1]};
  }
  return columns;
}

void CheckExtraColumns(const Tensor& tensor, int64_t width, int act_bits, const std::string& title,
                       const std::string& where) {
  const int64_t top = LargestCode(act_bits);
  ExtraColumn before = {-1, 0};
  size_t index = 0;
  for (const ExtraColumn& column : UnpackExtraColumns(tensor)) {
    // A channel's piece 0 has its first column among the first `width`.
    const int64_t last = column.channel == before.channel ? before.piece : 0;
    const char* fault = nullptr;
    if (column.channel < 0 || column.channel >= width) {
      fault = "is no channel of the site";
    } else if (column < before) {
      fault = "comes after one that is greater";
    } else if (column.piece < 0 || column.piece > last + 1) {
      fault = "leaves out a piece of its channel";
    } else if ((column.piece + int64_t{1}) * top > kLargestFlattenedCode) {
      fault = "reaches beyond 16 bits";
    }
    if (fault != nullptr) {
      throw Error("packed.bad_value", where,
                  title + ": row " + std::to_string(index) + ", channel " +
                      std::to_string(column.channel) + ", piece " + std::to_string(column.piece) +
                      ", " + fault,
                  "write the packed model again with `flatquant quantize`");
    }
    before = column;
    ++index;
  }
}

int64_t ColumnsOf(const PackedSite& site, int64_t width) {
  return width + (site.extra_columns.defined() ? site.extra_columns.shape[0] : 0);
}

LinearShape StoredShape(const ModelConfig& config, const PackedBlock& block, Linear which) {
  const LinearShape shape = ShapeOf(config, which);
  return {shape.rows, ColumnsOf(block.site(SiteOf(which)), shape.cols)};
}

}  // namespace flatquant
