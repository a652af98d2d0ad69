// What a new library is asked before it is used, in a process of its own: an instruction that the processor lacks ends
// that process, not the user's.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "amx.h"
#include "direct.h"
#include "winograd.h"

namespace idrc {

// The larger of an error and another one, or what is no number, which std::max would leave out.
inline double Worse(double error, double other) { return error < other || other != other ? other : error; }

// Whether a convolution by its definition, in plain float64, directly and by minimal filtering is the same.
inline bool ConvolutionsAgree(int channels) {
  constexpr int kSide = 8;
  const Shape shape{kSide, kSide, channels};
  std::vector<float> image(shape.Size()), weights(9 * channels * channels), bias(channels);
  unsigned random = 1;
  const auto draw = [&random] { return static_cast<float>((random = random * 1664525u + 1013904223u) >> 16) / 65536; };
  for (int y = 0; y < kSide; ++y) {
    for (int i = 0; i < kSide * channels; ++i) image[shape.At(y, 0) + i] = draw() - 0.5f;
  }
  for (float& weight : weights) weight = draw() - 0.5f;
  for (float& value : bias) value = draw();
  std::vector<float> direct(shape.Size()), filtered(shape.Size());
  const Layer layer{weights.data(), bias.data(), true, false};
  const Buffer scratch = Zeros(Winograd::Scratch(channels, channels));
  Convolve<3, 1>(layer, image.data(), shape, shape, nullptr, direct.data());
  Winograd::Run(layer, image.data(), shape, 1, shape, nullptr, filtered.data(), scratch.get());
  double error = 0, largest = 0;
  for (int y = 0; y < kSide; ++y) {
    for (int x = 0; x < kSide; ++x) {
      for (int c = 0; c < channels; ++c) {
        double sum = bias[c];
        for (int tap = 0; tap < 9; ++tap) {
          const float* pixel = image.data() + shape.At(y + tap / 3 - 1, x + tap % 3 - 1);
          for (int k = 0; k < channels; ++k) sum += double{pixel[k]} * weights[(tap * channels + k) * channels + c];
        }
        sum = std::max(sum, 0.0);
        const auto at = shape.At(y, x) + c;
        largest = std::max(largest, sum);
        error = Worse(Worse(error, std::abs(direct[at] - sum)), std::abs(filtered[at] - sum));
      }
    }
  }
  return error < 1e-4 * largest;  // a comparison that what is no number fails
}

// Whether a product by tiles is what it should be; true without tiles.
inline bool TilesAgree() {
#if defined(IDRC_HAS_AMX)
  if (!Amx::Usable()) return true;
  const Amx held;
  alignas(64) Half left[kTile * kTileDepth], right[kTileDepth * kTile];
  alignas(64) float sums[kTile * kTile];
  for (int i = 0; i < kTile * kTileDepth; ++i) {  // small integers: every sum is exact
    left[i] = ToHalf(static_cast<float>(i * 7 % 13 - 6));
    right[i] = ToHalf(static_cast<float>(i * 5 % 11 - 5));
  }
  Amx::Clear<0>();
  Amx::Read<4>(left, 2 * kTileDepth);
  Amx::Read<6>(right, 2 * kTileDepth);
  Amx::Add<0, 4, 6>();
  Amx::Write<0>(sums);
  for (int r = 0; r < kTile; ++r) {
    for (int c = 0; c < kTile; ++c) {
      float sum = 0;
      for (int k = 0; k < kTileDepth; ++k) {
        sum += FromHalf(left[r * kTileDepth + k]) * FromHalf(right[k / 2 * kTileDepth + 2 * c + k % 2]);
      }
      if (!(sums[r * kTile + c] == sum)) return false;
    }
  }
#endif
  return true;
}

}  // namespace idrc

// 0 if all is well.
extern "C" int IdrcSelfTest() {
  return idrc::ConvolutionsAgree(16) && idrc::ConvolutionsAgree(64) && idrc::TilesAgree() ? 0 : 1;
}
