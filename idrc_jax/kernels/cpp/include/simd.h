// Vectors of float32, as wide as the machine's: 16 numbers with AVX-512, 8 with AVX and AVX2, 4 with NEON and SSE2.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace idrc {

// Numbers of a vector. A build may ask for others than the machine's, in order to test them or to time them.
#if !defined(IDRC_LANES)
#if defined(__AVX512F__)
#define IDRC_LANES 16
#elif defined(__AVX__)
#define IDRC_LANES 8
#else
#define IDRC_LANES 4
#endif
#endif
constexpr int kLanes = IDRC_LANES;
static_assert(kLanes == 4 || kLanes == 8 || kLanes == 16);

// Vectors of sums that stay in registers: of 32 registers with AVX-512 and NEON, of 16 with the others.
#if defined(__aarch64__)
constexpr int kSums = kLanes == 16 ? 16 : 24;
#else
constexpr int kSums = kLanes == 16 ? 16 : kLanes == 8 ? 12 : 8;
#endif

using Vector = float __attribute__((vector_size(4 * kLanes)));
using Bits = std::uint32_t __attribute__((vector_size(4 * kLanes)));

inline Vector Load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void Store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

// What is no number stays none.
inline Vector Relu(Vector value) {
#if IDRC_LANES == 16 && defined(__AVX512F__)
  return (Vector)_mm512_max_ps(_mm512_setzero_ps(), (__m512)value);
#elif IDRC_LANES == 8 && defined(__AVX__)
  return (Vector)_mm256_max_ps(_mm256_setzero_ps(), (__m256)value);
#elif IDRC_LANES == 4 && defined(__SSE__)
  return (Vector)_mm_max_ps(_mm_setzero_ps(), (__m128)value);
#else
  return value < 0.0f ? Vector{} : value;
#endif
}

// To the nearest bfloat16, ties to even; what is no number stays none.
inline Vector RoundToHalf(Vector value) {
  const Bits bits = (Bits)value;
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return value == value ? (Vector)rounded : value;
}

// A tile of sums of products, kRows x (kVectors * kLanes) numbers, that lives in registers. Rows lie `row` numbers
// apart; of the numbers of a row, 16 lie together and the next 16 `panel` numbers after these.
template <int kRows, int kVectors>
struct Sums {
  Vector at[kRows][kVectors];

  static constexpr int kPanel = 16;
  static constexpr std::ptrdiff_t Place(int v, std::ptrdiff_t panel) {
    return v * kLanes / kPanel * panel + v * kLanes % kPanel;
  }

  __attribute__((always_inline)) void Clear() {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) at[r][v] = Vector{};
    }
  }
  __attribute__((always_inline)) void Read(const float* from, std::ptrdiff_t row, std::ptrdiff_t panel = kPanel) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) at[r][v] = Load(from + r * row + Place(v, panel));
    }
  }
  __attribute__((always_inline)) void Write(float* to, std::ptrdiff_t row, std::ptrdiff_t panel = kPanel) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) Store(to + r * row + Place(v, panel), at[r][v]);
    }
  }
  // Adds column[r * row] times the vectors to each row r.
  __attribute__((always_inline)) void Add(const float* column, std::ptrdiff_t row, const float* vectors,
                                          std::ptrdiff_t panel = kPanel) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) at[r][v] += Load(vectors + Place(v, panel)) * column[r * row];
    }
  }
};

}  // namespace idrc
