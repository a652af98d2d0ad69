// Working memory that is kept between calls: fresh pages of the system cost more than the arithmetic done on them.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <list>
#include <mutex>
#include <new>
#include <random>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace idrc {

// Pages, large ones where the system has them.
class Pages {
 public:
  explicit Pages(std::size_t floats) : floats_(floats) {
    const std::size_t bytes = (floats * sizeof(float) + kHuge - 1) / kHuge * kHuge;
    memory_ = static_cast<float*>(::operator new(bytes, std::align_val_t{kHuge}));
#ifdef MADV_HUGEPAGE
    madvise(memory_, bytes, MADV_HUGEPAGE);
#endif
  }
  Pages(Pages&& other) noexcept : floats_(other.floats_), memory_(other.memory_) { other.memory_ = nullptr; }
  Pages& operator=(Pages&&) = delete;
  ~Pages() {
    if (memory_) ::operator delete(memory_, std::align_val_t{kHuge});
  }

  float* get() const { return memory_; }
  std::size_t floats() const { return floats_; }

 private:
  static constexpr std::size_t kHuge = std::size_t{1} << 21;

  std::size_t floats_;
  float* memory_;
};

// Pages whose content is of use to a later call, under a name that no other pages ever have, and those that are free to be
// taken again. Of either there are at most two: what is kept is a saving, and whoever does not find it makes it anew.
class KeptPages {
 public:
  // Free pages of that size, or new ones.
  Pages Take(std::size_t floats) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto one = free_.begin(); one != free_.end(); ++one) {
        if (one->floats() != floats) continue;
        Pages pages = std::move(*one);
        free_.erase(one);
        return pages;
      }
    }
    return Pages(floats);
  }

  // Whether there are pages of that name; they then are the caller's.
  bool Find(std::uint64_t name, std::list<Pages>* found) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto one = kept_.begin(); one != kept_.end(); ++one) {
      if (one->name != name) continue;
      found->push_back(std::move(one->pages));
      kept_.erase(one);
      return true;
    }
    return false;
  }

  std::uint64_t Keep(Pages pages) {
    std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back({++name_, std::move(pages)});
    if (kept_.size() > kMost) kept_.pop_front();
    return name_;
  }

  void Release(Pages pages) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(pages));
    if (free_.size() > kMost) free_.pop_front();
  }

 private:
  static constexpr std::size_t kMost = 2;
  struct Named {
    std::uint64_t name;
    Pages pages;
  };

  // Names of another process, which a saved array may hold, are not ours.
  static std::uint64_t Start() {
    std::random_device random;
    return (std::uint64_t{random()} << 32 | random()) & ~std::uint64_t{0xffffff};
  }

  std::mutex mutex_;
  std::uint64_t name_ = Start();
  std::list<Named> kept_;
  std::list<Pages> free_;
};

}  // namespace idrc
