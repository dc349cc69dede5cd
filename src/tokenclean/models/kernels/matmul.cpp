// Linear layers and the losses of the output layer over packed weights.

#include "blocks.h"

#include <torch/library.h>

namespace tokenclean {
namespace {

constexpr int64_t kHeadPanels = 2;  // panels of logits looked at together: they stay in the processor's cache
constexpr int64_t kHeadBlocks = 2;  // blocks of rows for which a panel is fetched once

void add_bias(float* corner, const float* bias, int64_t height, int64_t width, int64_t columns) {
  if (bias == nullptr) return;
  for (int64_t r = 0; r < height; ++r)
    for (int64_t c = 0; c < width; ++c) corner[r * columns + c] += bias[c];
}

// With is_pair the second half of the rows are a second model's beside the first model's: their product is the first's plus
// that of the difference, so what the first's lost by rounding both have lost, and it cancels where they are subtracted.
template <typename T>
void linear_into(const Tensor& x, const Tensor& packed, const float* bias, bool is_pair, Tensor& out) {
  const Panels<T> panels(packed);
  const int64_t rows = is_pair ? x.size(0) / 2 : x.size(0), features = x.size(1), columns = out.size(1);
  const int64_t blocks = ceil_div(rows, kRows), count = packed.size(0);
  const int64_t parts = blocks >= 4 * at::get_num_threads() ? 1 : std::min<int64_t>(count, 8);
  const int64_t part_panels = ceil_div(count, parts);
  const float* from = x.const_data_ptr<float>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    Block<T> buffer(panels.depth), changes(panels.depth);
    const T *block = nullptr, *change = nullptr;
    int64_t loaded = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t number = task / parts, first = number * kRows, height = std::min(kRows, rows - first);
      if (number != loaded) {
        const float *upper = from + first * features, *lower = upper + rows * features;
        block = buffer.load(upper, features, height);
        if (is_pair) change = changes.load_difference(lower, upper, features, height);
      }
      loaded = number;
      const int64_t last_panel = std::min(count, (task % parts + 1) * part_panels);
      for (int64_t panel = task % parts * part_panels; panel < last_panel; ++panel) {
        const int64_t left = panel * kPanel, width = std::min(kPanel, columns - left);
        float* corner = to + first * columns + left;
        multiply<T>(block, panels, panel, height, width, corner, columns);
        const float* added = bias == nullptr ? nullptr : bias + left;
        if (is_pair) {
          float* other = corner + rows * columns;
          multiply<T>(change, panels, panel, height, width, other, columns);
          for (int64_t r = 0; r < height; ++r)
            for (int64_t c = 0; c < width; ++c) other[r * columns + c] += corner[r * columns + c];
          add_bias(other, added, height, width, columns);
        }
        add_bias(corner, added, height, width, columns);
      }
    }
    release<T>();
  });
}

// Running log-sum-exp of one row of logits, with what entropy and collision need: total = Σ e^(l - peak),
// moment = Σ e^(l - peak)(l - peak), squares = Σ e^(2 (l - peak)).
struct Running {
  float peak = -std::numeric_limits<float>::infinity();
  double total = 0, moment = 0, squares = 0;
  float target = 0;

  void add(float* logits, int64_t width, bool with_further) {
    const int64_t padded = ceil_div(width, Vec::size()) * Vec::size();
    for (int64_t c = width; c < padded; ++c) logits[c] = std::numeric_limits<float>::lowest();
    Vec high = Vec::loadu(logits);
    for (int64_t c = Vec::size(); c < padded; c += Vec::size()) high = at::vec::maximum(high, Vec::loadu(logits + c));
    const float found = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, high);
    if (!(found <= peak)) {  // NaN too
      const double shift = total > 0 ? static_cast<double>(peak) - found : 0.0, factor = std::exp(shift);
      moment = (moment + total * shift) * factor;
      total *= factor;
      squares *= factor * factor;
      peak = found;
    }
    const Vec top(peak);
    Vec sum(0), weighted(0), squared(0);
    for (int64_t c = 0; c < padded; c += Vec::size()) {
      const Vec distance = Vec::loadu(logits + c) - top, share = distance.exp();
      sum = sum + share;
      if (with_further) {
        weighted = weighted + share * distance;
        squared = squared + share * share;
      }
    }
    const auto add_up = [](Vec& a, Vec& b) { return a + b; };
    total += at::vec::vec_reduce_all<float>(add_up, sum);
    if (!with_further) return;
    moment += at::vec::vec_reduce_all<float>(add_up, weighted);
    squares += at::vec::vec_reduce_all<float>(add_up, squared);
  }
};

struct Finish {
  const float* bias;
  float scale, softcap;

  void apply(float* logits, int64_t left, int64_t width) const {
    if (bias != nullptr)
      for (int64_t c = 0; c < width; ++c) logits[c] += bias[left + c];
    if (scale != 1.0f)
      for (int64_t c = 0; c < width; ++c) logits[c] *= scale;
    if (softcap <= 0.0f) return;
    for (int64_t c = 0; c < width; c += Vec::size()) {
      const int64_t n = std::min<int64_t>(Vec::size(), width - c);
      ((Vec::loadu(logits + c, n) / Vec(softcap)).tanh() * Vec(softcap)).store(logits + c, n);
    }
  }
};

template <typename T>
void measure_into(const Tensor& hidden, const Tensor& packed, const Tensor& targets, int64_t vocabulary,
                  const Finish& finish, bool with_further, bool is_pair, Tensor& out) {
  const Panels<T> panels(packed);
  const int64_t models = is_pair ? 2 : 1;
  const int64_t rows = hidden.size(0) / models, features = hidden.size(1), count = packed.size(0);
  const float* from = hidden.const_data_ptr<float>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  float *loss = out.data_ptr<float>(), *entropy = loss + models * rows, *is_top1 = entropy + models * rows;
  float* collision = is_top1 + models * rows;
  constexpr int64_t together = kRows * kHeadBlocks, ld = kHeadPanels * kPanel;
  at::parallel_for(0, ceil_div(rows, together), 1, [&](int64_t begin, int64_t end) {
    std::vector<Block<T>> buffers(models * kHeadBlocks, Block<T>(panels.depth));
    std::vector<float> tile(models * together * ld);
    for (int64_t number = begin; number < end; ++number) {
      const int64_t first = number * together, height = std::min(together, rows - first);
      const T* blocks[2 * kHeadBlocks];
      for (int64_t b = 0; b * kRows < height; ++b) {
        const float *upper = from + (first + b * kRows) * features, *lower = upper + rows * features;
        const int64_t block_rows = std::min(kRows, height - b * kRows);
        blocks[b] = buffers[b].load(upper, features, block_rows);
        if (is_pair)
          blocks[kHeadBlocks + b] = buffers[kHeadBlocks + b].load_difference(lower, upper, features, block_rows);
      }
      std::vector<Running> running(models * together);
      for (int64_t panel = 0; panel < count; panel += kHeadPanels) {
        const int64_t left = panel * kPanel, width = std::min(ld, vocabulary - left);
        for (int64_t p = panel; p < std::min(count, panel + kHeadPanels); ++p)
          for (int64_t model = 0; model < models; ++model)
            for (int64_t b = 0; b * kRows < height; ++b)
              multiply<T>(blocks[model * kHeadBlocks + b], panels, p, std::min(kRows, height - b * kRows),
                          std::min(kPanel, vocabulary - p * kPanel),
                          tile.data() + (model * together + b * kRows) * ld + (p - panel) * kPanel, ld);
        if (is_pair)
          for (int64_t r = 0; r < height; ++r)
            for (int64_t c = 0; c < width; ++c) tile[(together + r) * ld + c] += tile[r * ld + c];
        for (int64_t model = 0; model < models; ++model)
          for (int64_t r = 0; r < height; ++r) {
            float* logits = tile.data() + (model * together + r) * ld;
            Running& sums = running[model * together + r];
            finish.apply(logits, left, width);
            const int64_t place = target[first + r] - left;
            if (place >= 0 && place < width) sums.target = logits[place];
            sums.add(logits, width, with_further);
          }
      }
      for (int64_t model = 0; model < models; ++model)
        for (int64_t r = 0; r < height; ++r) {
          const Running& sums = running[model * together + r];
          const int64_t place = model * rows + first + r;
          const double log_total = std::log(sums.total);
          loss[place] = static_cast<float>(log_total + (static_cast<double>(sums.peak) - sums.target));
          entropy[place] = static_cast<float>(log_total - sums.moment / sums.total);
          is_top1[place] = sums.target >= sums.peak ? 1.0f : 0.0f;
          collision[place] = static_cast<float>(sums.squares / (sums.total * sums.total));
        }
    }
    release<T>();
  });
}

void check_input(const Tensor& x, const Tensor& packed, bool is_pair) {
  TORCH_CHECK(!is_pair || x.size(0) % 2 == 0, "expected as many rows of the second model as of the first");
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat && x.is_contiguous(), "expected contiguous float32 rows");
  TORCH_CHECK(packed.scalar_type() == at::kFloat ? packed.dim() == 3 && packed.size(1) == x.size(1)
                                                 : packed.dim() == 4 && packed.size(1) == ceil_div(x.size(1), 2),
              "the packed weight does not fit the input's ", x.size(1), " features");
}

const float* data_or_null(const std::optional<Tensor>& tensor, int64_t size) {
  if (!tensor.has_value()) return nullptr;
  TORCH_CHECK(tensor->scalar_type() == at::kFloat && tensor->is_contiguous() && tensor->numel() == size,
              "expected a contiguous float32 bias of ", size, " features");
  return tensor->const_data_ptr<float>();
}

Tensor linear(const Tensor& x, const Tensor& packed, int64_t columns, const std::optional<Tensor>& bias, bool is_pair) {
  check_input(x, packed, is_pair);
  TORCH_CHECK(ceil_div(columns, kPanel) == packed.size(0), "the packed weight does not have ", columns, " columns");
  Tensor out = at::empty({x.size(0), columns}, x.options());
  const float* added = data_or_null(bias, columns);
  if (packed.scalar_type() == at::kFloat)
    linear_into<float>(x, packed, added, is_pair, out);
  else
    linear_into<BFloat16>(x, packed, added, is_pair, out);
  return out;
}

// Rows loss, entropy, is_top1 (1.0 or 0.0) and collision of softcap(scale · (hidden · weight + bias)); no softcap where
// it is 0. Entropy and collision mean nothing unless with_further is set.
Tensor measures(const Tensor& hidden, const Tensor& packed, const Tensor& targets, int64_t vocabulary,
                const std::optional<Tensor>& bias, double scale, double softcap, bool with_further, bool is_pair) {
  check_input(hidden, packed, is_pair);
  TORCH_CHECK(ceil_div(vocabulary, kPanel) == packed.size(0), "the packed weight has no vocabulary of ", vocabulary);
  TORCH_CHECK(targets.scalar_type() == at::kLong && targets.is_contiguous() && targets.numel() == hidden.size(0) / (is_pair ? 2 : 1),
              "expected one int64 target a row");
  Tensor out = at::empty({4, hidden.size(0)}, hidden.options());
  const Finish finish{data_or_null(bias, vocabulary), static_cast<float>(scale), static_cast<float>(softcap)};
  if (packed.scalar_type() == at::kFloat)
    measure_into<float>(hidden, packed, targets, vocabulary, finish, with_further, is_pair, out);
  else
    measure_into<BFloat16>(hidden, packed, targets, vocabulary, finish, with_further, is_pair, out);
  return out;
}

}  // namespace
}  // namespace tokenclean

TORCH_LIBRARY(tokenclean, library) {
  library.def("linear(Tensor x, Tensor packed, int columns, Tensor? bias, bool is_pair) -> Tensor");
  library.def(
      "measures(Tensor hidden, Tensor packed, Tensor targets, int vocabulary, Tensor? bias, float scale, "
      "float softcap, bool with_further, bool is_pair) -> Tensor");
}

TORCH_LIBRARY_IMPL(tokenclean, CPU, library) {
  library.impl("linear", &tokenclean::linear);
  library.impl("measures", &tokenclean::measures);
}
