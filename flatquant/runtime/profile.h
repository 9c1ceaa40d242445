#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace flatquant {

// What a forward pass spends its time on, as the calling thread sees it.
enum class Phase : uint8_t {
  kSites,    // norm, SwiGLU, transform and quantization of activations
  kLinears,  // the seven products of a block
  kCache,    // q and k norms, RoPE, K's and Q's transforms, storing K and V
  kAttention,
  kHead,  // final norm and output projection
  kOther  // embedding, rotation tables
};
inline constexpr std::array<std::string_view, 6> kPhaseNames = {"sites",     "linears", "cache",
                                                                "attention", "head",    "other"};

struct Profile {
  std::array<double, kPhaseNames.size()> seconds{};  // indexed by Phase

  double total() const {
    double sum = 0;
    for (double part : seconds) sum += part;
    return sum;
  }
  double share(Phase phase) const {
    const double all = total();
    return all > 0 ? seconds[static_cast<size_t>(phase)] / all : 0;
  }
};

// Adds the time of its scope to a phase; with profile == nullptr it does nothing.
class PhaseTimer {
 public:
  PhaseTimer(Profile* profile, Phase phase) : profile_(profile), phase_(phase) {
    if (profile_ != nullptr) start_ = std::chrono::steady_clock::now();
  }
  ~PhaseTimer() {
    if (profile_ == nullptr) return;
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start_;
    profile_->seconds[static_cast<size_t>(phase_)] += time.count();
  }
  PhaseTimer(const PhaseTimer&) = delete;
  PhaseTimer& operator=(const PhaseTimer&) = delete;

 private:
  Profile* profile_;
  Phase phase_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace flatquant
