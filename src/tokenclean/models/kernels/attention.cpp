// Causal attention of each conversation of a pack to itself alone: softmax(scale · QKᵀ) V, block by block.

#include "blocks.h"

#include <torch/library.h>

#include <atomic>

namespace tokenclean {
namespace {

constexpr int64_t kQueries = 64;  // query rows in a block; a shorter block is filled with zeros
constexpr int64_t kKeys = 32;     // keys are looked at in multiples of this, so that few block products are generated

int64_t whole(int64_t keys) { return ceil_div(keys, kKeys) * kKeys; }

struct Shape {
  int64_t heads, key_heads, tokens, width;  // width: features of a head
  int64_t q_head, q_token, k_head, k_token, v_head, v_token;  // strides
  float scale, softcap;
  int64_t window;  // keys a query sees, itself included; 0: all
};

template <typename T>
struct Buffers {
  std::vector<T> keys, values, queries, shares;  // Kᵀ and V as right factors, Q and softmax as left ones
  std::vector<float> logits, outputs;
  float sums[kQueries];
};

// Kᵀ [width, keys] and V [keys, width] of one head as right factors of block products, filled with zeros to whole blocks.
template <typename T>
void load_keys(const float* k, const float* v, const Shape& s, int64_t length, Buffers<T>& to) {
  const int64_t padded = whole(length), depth = s.width + s.width % 2;
  to.keys.assign(depth * padded, T(0.0f));
  to.values.assign(padded * s.width, T(0.0f));
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t t = 0; t < length; ++t)
      for (int64_t d = 0; d < s.width; ++d) to.keys[d * padded + t] = k[t * s.k_token + d];
    for (int64_t t = 0; t < length; ++t) std::memcpy(&to.values[t * s.width], v + t * s.v_token, s.width * sizeof(float));
  } else {  // pairs of neighbouring depths lie beside each other
    auto* keys = reinterpret_cast<uint16_t*>(to.keys.data());
    auto* values = reinterpret_cast<uint16_t*>(to.values.data());
    for (int64_t t = 0; t < length; ++t)
      for (int64_t d = 0; d < s.width; ++d) keys[(d / 2 * padded + t) * 2 + d % 2] = rounded(k[t * s.k_token + d]);
    for (int64_t t = 0; t < length; ++t)
      for (int64_t d = 0; d < s.width; ++d) values[(t / 2 * s.width + d) * 2 + t % 2] = rounded(v[t * s.v_token + d]);
  }
}

// Softmax over the visible logits of one row, unnormalised, in place; returns its sum. Others become 0.
float softmax_row(float* logits, int64_t first, int64_t last, int64_t width, const Shape& s) {
  const int64_t size = Vec::size();
  constexpr float lowest = std::numeric_limits<float>::lowest();
  std::fill(logits, logits + first, lowest);
  std::fill(logits + last, logits + width, lowest);
  const int64_t begin = first / size * size, end = std::min(width, ceil_div(last, size) * size);  // whole vectors
  Vec high(lowest), sum(0);
  for (int64_t c = begin; c < end; c += size) {
    Vec logit = Vec::loadu(logits + c) * Vec(s.scale);
    if (s.softcap > 0.0f) logit = (logit / Vec(s.softcap)).tanh() * Vec(s.softcap);
    logit.store(logits + c);
    high = at::vec::maximum(high, logit);
  }
  if (s.softcap > 0.0f) {  // the cap has lifted what is hidden
    std::fill(logits + begin, logits + first, lowest);
    std::fill(logits + last, logits + end, lowest);
  }
  Vec top(at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, high));
  for (int64_t c = begin; c < end; c += size) {
    const Vec share = (Vec::loadu(logits + c) - top).exp();
    share.store(logits + c);
    sum = sum + share;
  }
  std::fill(logits, logits + begin, 0.0f);
  std::fill(logits + end, logits + width, 0.0f);
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, sum);
}

// The left factor of a block product: float32 stays, bf16 is rounded.
template <typename T>
void put(T* to, const float* from, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(to, from, count * sizeof(float));
  } else {
    auto* bits = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < count; ++i) bits[i] = rounded(from[i]);
  }
}

template <typename T>
void attend(const float* q, float* out, const Shape& s, int64_t length, Buffers<T>& b) {
  constexpr bool is_float = std::is_same_v<T, float>;
  const int64_t padded = whole(length), depth = is_float ? s.width : s.width + s.width % 2, out_token = s.heads * s.width;
  for (int64_t first = 0; first < length; first += kQueries) {
    const int64_t rows = std::min(kQueries, length - first);
    const int64_t begin = s.window > 0 ? std::max<int64_t>(0, first - s.window + 1) / kKeys * kKeys : 0;
    const int64_t columns = whole(first + rows) - begin;
    b.queries.assign(kQueries * depth, T(0.0f));
    for (int64_t r = 0; r < rows; ++r) put(b.queries.data() + r * depth, q + (first + r) * s.q_token, s.width);
    b.logits.resize(kQueries * columns);
    blas::brgemm(kQueries, columns, depth, depth, padded, columns, false, b.queries.data(),
                 b.keys.data() + begin * (is_float ? 1 : 2), b.logits.data(), !is_float);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t place = first + r, visible = s.window > 0 ? std::max<int64_t>(0, place - s.window + 1) : 0;
      b.sums[r] = softmax_row(b.logits.data() + r * columns, visible - begin, place + 1 - begin, columns, s);
    }
    const T* shares;
    if constexpr (is_float) {
      shares = b.logits.data();
    } else {
      b.shares.assign(kQueries * columns, T(0.0f));
      put(b.shares.data(), b.logits.data(), rows * columns);
      shares = b.shares.data();
    }
    b.outputs.resize(kQueries * s.width);
    blas::brgemm(kQueries, s.width, columns, columns, s.width, s.width, false, shares, b.values.data() + begin * s.width,
                 b.outputs.data(), !is_float);
    for (int64_t r = 0; r < rows; ++r) {
      const float share = 1.0f / b.sums[r];
      for (int64_t d = 0; d < s.width; ++d) out[(first + r) * out_token + d] = b.outputs[r * s.width + d] * share;
    }
  }
}

template <typename T>
void attend_all(const Tensor& q, const Tensor& k, const Tensor& v, at::IntArrayRef lengths, const Shape& s, Tensor& out) {
  std::vector<int64_t> starts(lengths.size(), 0);
  for (size_t i = 1; i < lengths.size(); ++i) starts[i] = starts[i - 1] + lengths[i - 1];
  const float *queries = q.const_data_ptr<float>(), *keys = k.const_data_ptr<float>(), *values = v.const_data_ptr<float>();
  float* to = out.data_ptr<float>();
  const int64_t threads = at::get_num_threads(), shared = s.heads / s.key_heads, segments = lengths.size();
  const int64_t group = segments * s.key_heads >= 4 * threads ? shared : 1;  // query heads of one task
  const int64_t per_segment = s.heads / group;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    Buffers<T> buffers;
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task = next++; task < segments * per_segment; task = next++) {
        const int64_t segment = task / per_segment, head = task % per_segment * group, start = starts[segment];
        const int64_t key_head = head / shared, length = lengths[segment];
        load_keys<T>(keys + key_head * s.k_head + start * s.k_token, values + key_head * s.v_head + start * s.v_token, s,
                     length, buffers);
        for (int64_t h = head; h < head + group; ++h)
          attend<T>(queries + h * s.q_head + start * s.q_token, to + (start * s.heads + h) * s.width, s, length, buffers);
      }
    }
    release<T>();
  });
}

// (1, heads, T, d) float32 each, T the sum of the lengths, to (1, T, heads, d). softcap and window: 0 for none.
Tensor segment_attention(const Tensor& q, const Tensor& k, const Tensor& v, at::IntArrayRef lengths, double scale,
                         double softcap, int64_t window, bool as_bf16) {
  for (const Tensor* t : {&q, &k, &v})
    TORCH_CHECK(t->dim() == 4 && t->size(0) == 1 && t->scalar_type() == at::kFloat && t->stride(3) == 1,
                "expected float32 of shape (1, heads, tokens, features), features side by side");
  const int64_t heads = q.size(1), key_heads = k.size(1), tokens = q.size(2), width = q.size(3);
  TORCH_CHECK(key_heads > 0 && heads % key_heads == 0 && v.size(1) == key_heads && k.size(2) == tokens &&
                  v.size(2) == tokens && k.size(3) == width && v.size(3) == width,
              "queries, keys and values do not fit each other");
  int64_t sum = 0;
  for (const int64_t length : lengths) {
    TORCH_CHECK(length > 0, "a segment needs a token");
    sum += length;
  }
  TORCH_CHECK(sum == tokens, "the segments hold ", sum, " tokens, the pack ", tokens);
  const Shape shape{heads,       key_heads,   tokens,      width,       q.stride(1), q.stride(2),
                    k.stride(1), k.stride(2), v.stride(1), v.stride(2), static_cast<float>(scale),
                    static_cast<float>(softcap), window};
  Tensor out = at::empty({1, tokens, heads, width}, q.options());
  if (as_bf16)
    attend_all<BFloat16>(q, k, v, lengths, shape, out);
  else
    attend_all<float>(q, k, v, lengths, shape, out);
  return out;
}

}  // namespace
}  // namespace tokenclean

TORCH_LIBRARY_FRAGMENT(tokenclean, library) {
  library.def(
      "segment_attention(Tensor q, Tensor k, Tensor v, int[] lengths, float scale, float softcap, int window, "
      "bool as_bf16) -> Tensor");
}

TORCH_LIBRARY_IMPL(tokenclean, CPU, library) { library.impl("segment_attention", &tokenclean::segment_attention); }
