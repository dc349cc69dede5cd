// Parts that all CPU kernels share: panels of packed weights, blocks of rows, and block products through oneDNN's brgemm,
// which torch exports. Inputs are float32; where weights are bf16 they are rounded block by block. Sums are float32.
//
// What a block computes depends on its own rows alone and is added up in one order, so results depend neither on the
// number of threads nor on what else is in the pack.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

namespace tokenclean {

using at::BFloat16;
using at::Tensor;
using Vec = at::vec::Vectorized<float>;
namespace blas = at::native::cpublas;

constexpr int64_t kPanel = 64;        // output features in a panel
constexpr int64_t kRows = 64;         // input rows in a block
constexpr int64_t kDepthBytes = 3072;  // of an input row in one block product: a panel of weights then fits the cache

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline uint16_t rounded(float value) {  // to the nearest bf16, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : nearest);
}

// One weight in panels: [panels, depth, 64] float32, or [panels, depth / 2, 64, 2] bf16 with depth made even.
template <typename T>
struct Panels {
  const T* data;
  int64_t depth;

  explicit Panels(const Tensor& packed)
      : data(packed.const_data_ptr<T>()), depth(packed.dim() == 4 ? packed.size(1) * 2 : packed.size(1)) {}
  const T* at(int64_t panel, int64_t k) const { return data + (panel * depth + k) * kPanel; }
};

// A block of input rows in the type of the weights: float32 rows are used where they lie.
template <typename T>
class Block {
 public:
  explicit Block(int64_t depth) : depth_(depth), rows_(std::is_same_v<T, float> ? 0 : kRows * depth) {}

  const T* load(const float* x, int64_t features, int64_t rows) {
    if constexpr (std::is_same_v<T, float>) {
      return x;
    } else {
      return round(features, rows, [x](int64_t at) { return x[at]; });
    }
  }

  // What the rows of x differ by from those of base, rounded to T after the subtraction.
  const T* load_difference(const float* x, const float* base, int64_t features, int64_t rows) {
    if constexpr (std::is_same_v<T, float>) {
      rows_.resize(kRows * depth_);
      for (int64_t at = 0; at < rows * features; ++at) rows_[at] = x[at] - base[at];
      return rows_.data();
    } else {
      return round(features, rows, [x, base](int64_t at) { return x[at] - base[at]; });
    }
  }

 private:
  template <typename F>
  const T* round(int64_t features, int64_t rows, const F& value) {
    auto* target = reinterpret_cast<uint16_t*>(rows_.data());
    for (int64_t r = 0; r < rows; ++r) {
      uint16_t* to = target + r * depth_;
      for (int64_t k = 0; k < features; ++k) to[k] = rounded(value(r * features + k));
      for (int64_t k = features; k < depth_; ++k) to[k] = 0;
    }
    return rows_.data();
  }

  int64_t depth_;
  std::vector<T> rows_;
};

// out[rows, columns] = block · panel, where out has ld columns in a row.
template <typename T>
void multiply(const T* block, const Panels<T>& panels, int64_t panel, int64_t rows, int64_t columns, float* out,
              int64_t ld) {
  constexpr int64_t step = kDepthBytes / sizeof(T);
  for (int64_t k = 0; k < panels.depth; k += step) {
    const int64_t depth = std::min(step, panels.depth - k);
    blas::brgemm(rows, columns, depth, panels.depth, kPanel, ld, k > 0, block + k, panels.at(panel, k), out,
                 !std::is_same_v<T, float>);
  }
}

template <typename T>
void release() { blas::brgemm_release(!std::is_same_v<T, float>); }

}  // namespace tokenclean
