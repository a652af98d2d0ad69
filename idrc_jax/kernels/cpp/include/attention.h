// Attention: softmax(scale * queries x keys') x values, for every head of every image, float32. The scores of some queries
// at a time stay in the cache.

#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include "gemm.h"

namespace idrc {

// Arrays [count, tokens, heads, numbers], of queries and results, and of keys and values.
struct Heads {
  int count, tokens, heads, numbers;

  std::ptrdiff_t Row() const { return static_cast<std::ptrdiff_t>(heads) * numbers; }  // from token to token
  std::ptrdiff_t At(int image, int head) const {
    return image * tokens * Row() + static_cast<std::ptrdiff_t>(head) * numbers;
  }
};

// e^x for x <= 0, to 2 units in the last place; 1e-38 below -87, and what is no number stays none.
inline Vector ExpOfNegative(Vector x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  x = x < -87.0f ? Vector{} - 87.0f : x;
  const Vector shifted = x * 1.44269504f + kShift;
  const Vector whole = shifted - kShift;
  const Vector rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Vector sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  return sum * (Vector)(((Bits)shifted << 23) + 0x3f800000u);
}

class Attention {
 public:
  static std::size_t Scratch(Heads keys, Heads values) {
    return PackedSize(keys.numbers, keys.tokens) + PackedSize(values.tokens, values.numbers) +
           std::max(Rows::Size(kQueries, std::min(keys.numbers, kSlice)),
                    Rows::Size(kQueries, std::min(keys.tokens, kSlice))) +
           static_cast<std::size_t>(kQueries) * (Whole(keys.tokens) + Whole(values.numbers));
  }

  // One head of one image.
  static void Run(const float* queries, Heads of_queries, const float* keys, Heads of_keys, const float* values,
                  Heads of_values, float scale, int image, int head, Heads out, float* to, float* scratch) {
    const int tokens = of_keys.tokens, depth = of_keys.numbers, features = of_values.numbers;
    float* packed_keys = scratch;
    float* packed_values = packed_keys + PackedSize(depth, tokens);
    float* memory = packed_values + PackedSize(tokens, features);
    float* scores =
        memory + std::max(Rows::Size(kQueries, std::min(depth, kSlice)), Rows::Size(kQueries, std::min(tokens, kSlice)));
    float* sums = scores + static_cast<std::size_t>(kQueries) * Whole(tokens);
    queries += of_queries.At(image, head);
    PackKeys(keys + of_keys.At(image, head), of_keys, packed_keys);
    PackValues(values + of_values.At(image, head), of_values, packed_values);
    for (int first = 0; first < of_queries.tokens; first += kQueries) {
      const int count = std::min(kQueries, of_queries.tokens - first);
      Multiply(queries + first * of_queries.Row(), of_queries.Row(), count, depth, packed_keys, Whole(tokens), memory,
               scores);
      float weight[kQueries];
      for (int r = 0; r < count; ++r) weight[r] = Exponentials(scores + r * Whole(tokens), tokens, scale);
      Multiply(scores, Whole(tokens), count, tokens, packed_values, Whole(features), memory, sums);
      for (int r = 0; r < count; ++r) {
        float* result = to + out.At(image, head) + (first + r) * out.Row();
        for (int i = 0; i < features; ++i) result[i] = sums[r * Whole(features) + i] / weight[r];
      }
    }
  }

 private:
  static constexpr int kQueries = 4 * kTileRows;  // whose scores are made together

  static std::ptrdiff_t Whole(int columns) { return static_cast<std::ptrdiff_t>(Panels(columns)) * kPanel; }

  static void PackKeys(const float* keys, Heads of, float* to) {
    for (int t = 0; t < Whole(of.tokens); ++t) {
      float* column = to + static_cast<std::ptrdiff_t>(t / kPanel) * of.numbers * kPanel + t % kPanel;
      for (int i = 0; i < of.numbers; ++i) column[i * kPanel] = t < of.tokens ? keys[t * of.Row() + i] : 0.0f;
    }
  }

  static void PackValues(const float* values, Heads of, float* to) {
    for (int c = 0; c < of.numbers; c += kPanel) {
      const int width = std::min(kPanel, of.numbers - c);
      for (int t = 0; t < of.tokens; ++t, to += kPanel) {
        Copy(values + t * of.Row() + c, width, to);
        std::fill(to + width, to + kPanel, 0.0f);
      }
    }
  }

  // Rows that lie `step` apart times packed weights.
  static void Multiply(const float* from, std::ptrdiff_t step, int count, int depth, const float* weights,
                       std::ptrdiff_t columns, float* memory, float* to) {
    for (int k = 0; k < depth; k += kSlice) {
      const int now = std::min(kSlice, depth - k);
      Rows rows(memory, now);
      for (int r = 0; r < count; ++r) rows.Put(r, 0, from + r * step + k, now);
      MultiplySlice(rows, count, k, depth, weights, static_cast<int>(columns), {nullptr, nullptr, Activation::kNone}, to);
    }
  }

  // Scores become the exponentials of their distances from the largest; returns the sum. What is no number is the largest.
  static float Exponentials(float* scores, int count, float scale) {
    const int end = count / kLanes * kLanes;
    alignas(64) float rest[kLanes];
    std::fill_n(rest, kLanes, -std::numeric_limits<float>::infinity());
    std::copy(scores + end, scores + count, rest);
    Vector most = Load(rest);
    for (int i = 0; i < end; i += kLanes) {
      const Vector score = Load(scores + i);
      most = (score > most) | (score != score) ? score : most;
    }
    float largest = most[0];
    for (int v = 1; v < kLanes; ++v) largest = most[v] > largest || most[v] != most[v] ? most[v] : largest;
    Vector sum{};
    for (int i = 0; i < end; i += kLanes) {
      const Vector made = ExpOfNegative((Load(scores + i) - largest) * scale);
      Store(scores + i, made);
      sum += made;
    }
    if (end < count) {
      const Vector made = ExpOfNegative((Load(rest) - largest) * scale);
      for (int i = end; i < count; ++i) scores[i] = made[i - end];
      for (int i = end; i < count; ++i) sum[i - end] += made[i - end];
    }
    float total = 0.0f;
    for (int v = 0; v < kLanes; ++v) total += sum[v];
    return total;
  }
};

}  // namespace idrc
