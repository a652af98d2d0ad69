// Convolutions that leave channels apart: a vector of channels of one image at a time, whose pixels lie together.

#pragma once

#include "gemm.h"

namespace idrc {

class Depthwise {
 public:
  // Numbers of working memory, zeros at first.
  static std::size_t Scratch(Images in, const Window& window) {
    const std::size_t pixels = (in.height + 2 * window.pad_y) * (in.width + 2 * window.pad_x);
    return (pixels + window.height * window.width) * kLanes;
  }

  // One image; weights are [height, width, channels].
  static void Run(const float* from, Images in, const float* weights, const Window& window, int image, Images out,
                  const Epilogue& epilogue, float* to, float* scratch) {
    const int taps = window.height * window.width, row = in.width + 2 * window.pad_x;
    float* filter = scratch;
    float* pixels = scratch + taps * kLanes;
    for (int c = 0; c < in.channels; c += kLanes) {
      for (int tap = 0; tap < taps; ++tap) Store(filter + tap * kLanes, Load(weights + tap * in.channels + c));
      for (int y = 0; y < in.height; ++y) {
        const float* line = from + in.At(image, y, 0) + c;
        float* copy = pixels + (static_cast<std::ptrdiff_t>(y + window.pad_y) * row + window.pad_x) * kLanes;
        for (int x = 0; x < in.width; ++x) Store(copy + x * kLanes, Load(line + x * in.channels));
      }
      for (int y = 0; y < out.height; ++y) {
        const float* corner = pixels + static_cast<std::ptrdiff_t>(y) * window.stride_y * row * kLanes;
        const std::ptrdiff_t at = out.At(image, y, 0) + c;
        if (out.width < kPixels) {
          for (int x = 0; x < out.width; ++x) Pixels<1>(corner, row, filter, window, x, out, c, at, epilogue, to);
          continue;
        }
        for (int x = 0; x < out.width; x += kPixels) {  // the last ones overlap those before
          const int first = std::min(x, out.width - kPixels);
          Pixels<kPixels>(corner, row, filter, window, first, out, c, at, epilogue, to);
        }
      }
    }
  }

 private:
  static constexpr int kPixels = 7;  // that are computed together, divides 56, 28, 14 and 7

  template <int kCount>
  static void Pixels(const float* corner, int row, const float* filter, const Window& window, int x, Images out, int c,
                     std::ptrdiff_t at, const Epilogue& epilogue, float* to) {
    const int stride = window.stride_x * kLanes;
    Vector sum[kCount];
    for (int p = 0; p < kCount; ++p) sum[p] = epilogue.bias ? Load(epilogue.bias + c) : Vector{};
    for (int ky = 0; ky < window.height; ++ky) {
      const float* line = corner + static_cast<std::ptrdiff_t>(ky) * row * kLanes + static_cast<std::ptrdiff_t>(x) * stride;
      for (int kx = 0; kx < window.width; ++kx, line += kLanes, filter += kLanes) {
        const Vector weight = Load(filter);
#pragma GCC unroll 8
        for (int p = 0; p < kCount; ++p) sum[p] += weight * Load(line + p * stride);
      }
    }
    for (int p = 0; p < kCount; ++p) {
      const std::ptrdiff_t here = at + static_cast<std::ptrdiff_t>(x + p) * out.channels;
      Store(to + here, Finished(epilogue, sum[p], epilogue.shortcut ? epilogue.shortcut + here : nullptr));
    }
  }
};

}  // namespace idrc
