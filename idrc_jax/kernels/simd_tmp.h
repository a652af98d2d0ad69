#pragma once
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifndef IDRC_VECTOR_BITS
#ifdef __AVX512F__
#define IDRC_VECTOR_BITS 512
#elif defined(__AVX2__)
#define IDRC_VECTOR_BITS 256
#else
#define IDRC_VECTOR_BITS 128
#endif
#endif
namespace idrc {
constexpr int kLanes = IDRC_VECTOR_BITS / 32;
using Vector = float __attribute__((vector_size(IDRC_VECTOR_BITS / 8), aligned(4)));
inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
inline Vector Relu(Vector value) { return value < 0.0f ? Vector{} : value; }
}
#include <memory>
#include <new>
#include <cstring>
namespace idrc {
struct Release {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<float[], Release>;
inline Buffer Uninitialised(std::size_t size) {
  return Buffer(static_cast<float*>(::operator new[](size * sizeof(float), std::align_val_t{64})));
}
inline Buffer Zeros(std::size_t size) {
  Buffer memory = Uninitialised(size);
  std::memset(memory.get(), 0, size * sizeof(float));
  return memory;
}
}
