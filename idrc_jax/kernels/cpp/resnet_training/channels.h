// What happens to a vector of channels as results are stored: normalisation, its gradient, and the sums they need.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>

#include "resnet_training/network.h"

namespace idrc {
namespace {

struct Normal {
  Vector mean, factor, bias;

  Normal(const Convolution& of, int c) : mean(Load(of.mean + c)), factor(Load(of.factor + c)), bias(Load(of.bias + c)) {}
  Vector operator()(Vector result) const { return (result - mean) * factor + bias; }
};

// The gradient with respect to a result, from that with respect to the normalised one.
struct NormalGradient {
  Vector mean, factor, slope, offset;

  NormalGradient(const Convolution& of, int c)
      : mean(Load(of.mean + c)), factor(Load(of.factor + c)), slope(Load(of.slope + c)), offset(Load(of.offset + c)) {}
  Vector operator()(Vector gradient, Vector result) const {
    return factor * gradient + (result - mean) * slope + offset;
  }
};

// Sums over pixels, [kSums, channels]: in float32 over some tiles, in float64 over a share.
template <int kSums>
class ChannelSums {
 public:
  ChannelSums(double* to, int channels) : to_(to), channels_(channels) {}

  void Add(int sum, int channel, Vector value) {
    float* at = some_[sum] + channel;
    Store(at, Load(at) + value);
  }
  void Flush() {
    for (int s = 0; s < kSums; ++s) {
      for (int c = 0; c < channels_; ++c) to_[s * kLargest + c] += some_[s][c];
      std::fill_n(some_[s], channels_, 0.0f);
    }
  }

 private:
  double* to_;
  int channels_;
  float some_[kSums][kLargest] = {};
};

// Fetches memory into the cache a little at a time, while other work is done that will soon need it.
class Fetching {
 public:
  void Add(const float* from, std::size_t floats, bool to_write = false) {
    if (streams_ < kMost) stream_[streams_++] = {reinterpret_cast<const char*>(from), floats * sizeof(float), 0, to_write};
  }
  // In so many steps.
  void Start(int steps) { steps_ = steps, step_ = 0; }
  void Step() {
    if (step_ == steps_) return;
    ++step_;
    for (int s = 0; s < streams_; ++s) {
      Stream& stream = stream_[s];
      const std::size_t end = stream.bytes * step_ / steps_;
      for (; stream.done < end; stream.done += kLine) {
        if (stream.to_write) {
          __builtin_prefetch(stream.from + stream.done, 1, 2);
        } else {
          __builtin_prefetch(stream.from + stream.done, 0, 2);
        }
      }
    }
  }

 private:
  static constexpr int kMost = 8;
  static constexpr std::size_t kLine = 64;
  struct Stream {
    const char* from;
    std::size_t bytes, done;
    bool to_write;
  };

  std::array<Stream, kMost> stream_;
  int streams_ = 0, steps_ = 0, step_ = 0;
};

// Stores a convolution's results and takes the sums of them and of their squares.
class Statistics {
 public:
  Statistics(float* to, double* sums, int channels, Fetching& fetching)
      : to_(to), sums_(sums, channels), fetching_(fetching) {}

  struct Part {
    float* to;
    int channel;
    ChannelSums<2>* sums;
    Vector sum = {}, squares = {};

    void Put(std::ptrdiff_t at, Vector value) {
      Store(to + at, value);
      sum += value;
      squares += value * value;
    }
    void End() {
      sums->Add(0, channel, sum);
      sums->Add(1, channel, squares);
    }
  };
  Part Begin(std::ptrdiff_t at, int channel) { return {to_ + at, channel, &sums_}; }
  void EndBlock() { sums_.Flush(); }
  void Step() { fetching_.Step(); }

 private:
  float* to_;
  ChannelSums<2> sums_;
  Fetching& fetching_;
};

// Stores the gradient with respect to what was cut at 0, where it was above, and takes the sums that the gradient of
// normalisation needs: of it, and of it times the result's difference from the mean (and the projection's).
struct Cut {
  float* to;
  const float* output;  // what was cut; null: that is made again, from `result`
  const float* added;   // a gradient that comes another way; null: none
  const float* result;
  const float* projected;  // null: none
  const Convolution* main;
  const Convolution* projection;
};

template <bool kStored, bool kProjected>
class Cutting {
 public:
  Cutting(const Cut& cut, double* sums, Fetching& fetching)
      : cut_(cut), sums_(sums, cut.main->out.channels), fetching_(fetching) {}

  struct Part {
    const Cut& cut;
    std::ptrdiff_t at;
    int channel;
    ChannelSums<kProjected ? 3 : 2>* sums;
    Normal normal;
    Vector projected_mean, sum = {}, products = {}, projected = {};

    void Put(std::ptrdiff_t offset, Vector value) {
      const std::ptrdiff_t here = at + offset;
      const Vector result = Load(cut.result + here);
      if (cut.added) value += Load(cut.added + here);
      const Vector output = kStored ? Load(cut.output + here) : normal(result);
      value = output > 0.0f ? value : Vector{};
      Store(cut.to + here, value);
      sum += value;
      products += value * (result - normal.mean);
      if constexpr (kProjected) projected += value * (Load(cut.projected + here) - projected_mean);
    }
    void End() {
      sums->Add(0, channel, sum);
      sums->Add(1, channel, products);
      if constexpr (kProjected) sums->Add(2, channel, projected);
    }
  };
  Part Begin(std::ptrdiff_t at, int channel) {
    Vector mean{};
    if constexpr (kProjected) mean = Load(cut_.projection->mean + channel);
    return {cut_, at, channel, &sums_, Normal(*cut_.main, channel), mean};
  }
  void EndBlock() { sums_.Flush(); }
  void Step() { fetching_.Step(); }

 private:
  const Cut& cut_;
  ChannelSums<kProjected ? 3 : 2> sums_;
  Fetching& fetching_;
};

// Calls run(finish) with what `cut` asks for.
template <class Run>
void WithCutting(const Cut& cut, double* sums, Fetching& fetching, const Run& run) {
  const auto call = [&](auto cutting) { run(cutting); };
  if (!cut.output) {
    call(Cutting<false, false>(cut, sums, fetching));
  } else if (cut.projected) {
    call(Cutting<true, true>(cut, sums, fetching));
  } else {
    call(Cutting<true, false>(cut, sums, fetching));
  }
}

// Tells `count` images' values, which lie one after another without a border, to `finish`.
template <class Finish>
void Tell(const float* values, Shape shape, int count, Finish& finish) {
  const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(shape.width) * shape.channels;
  for (std::ptrdiff_t at = 0; at < row * shape.height * count; at += row) {
    for (int c = 0; c < shape.channels; c += kLanes) {
      auto part = finish.Begin(at + c, c);
      for (std::ptrdiff_t x = 0; x < row; x += shape.channels) part.Put(x, Load(values + at + c + x));
      part.End();
    }
    finish.EndBlock();
  }
}

// Calls run(std::integral_constant) with the channels of one of the stages.
template <class Run>
void WithChannels(int channels, const Run& run) {
  if (channels == 16) {
    run(std::integral_constant<int, 16>());
  } else if (channels == 32) {
    run(std::integral_constant<int, 32>());
  } else {
    run(std::integral_constant<int, 64>());
  }
}

}  // namespace
}  // namespace idrc
