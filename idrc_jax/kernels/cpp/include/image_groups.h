// Images that share a product: a group of them is read at once, with the same transformed weights.

#pragma once

#include <algorithm>
#include <cstddef>

#include "tensor.h"

namespace idrc {

constexpr int kGroup = 8;  // images that share transformed weights, at most

// Images without a border, to be read a few at a time with one.
class Bordered {
 public:
  explicit Bordered(Shape shape) : shape_(shape), copy_(Zeros(kGroup * shape.Size())) {}

  const float* Copy(const float* images, int count) {
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(shape_.width) * shape_.channels;
    for (int i = 0; i < count; ++i) {
      for (int y = 0; y < shape_.height; ++y, images += row) {
        std::copy_n(images, row, copy_.get() + i * shape_.Size() + shape_.At(y, 0));
      }
    }
    return copy_.get();
  }

 private:
  Shape shape_;
  Buffer copy_;
};

}  // namespace idrc
