// KlStatistics as text and JSON. Names, order and units are llama-perplexity's, so
// that scripts which read its output, and people who know it, feel at home.

#include <fmt/format.h>

#include <cmath>

#include "flatquant/eval/kl_divergence.h"

namespace flatquant {
namespace {

// Names of Distribution::percentiles, from the smallest.
constexpr const char* kPercentNames[] = {" 0.1%", " 1.0%", " 5.0%", "10.0%", "25.0%",
                                         "75.0%", "90.0%", "95.0%", "99.0%", "99.9%"};
constexpr const char* kPercentKeys[] = {"0.1", "1",  "5",  "10", "25",
                                        "75",  "90", "95", "99", "99.9"};

// From the largest to the smallest, as lines "99.9%   KLD: ...".
std::string DistributionLines(const Distribution& values, const char* what, double scale,
                              const char* number, const char* unit, bool quartiles) {
  std::string lines;
  const auto line = [&](const char* name, double value) {
    lines += fmt::format("{:<7} {}: {}{}\n", name, what,
                         fmt::format(fmt::runtime(number), scale * value), unit);
  };
  line("Maximum", values.maximum);
  for (size_t i = values.percentiles.size(); i-- > 0;) {
    if (i == 4) line("Median", values.median);
    if (!quartiles && (i == 4 || i == 5)) continue;
    line(kPercentNames[i], values.percentiles[i]);
  }
  line("Minimum", values.minimum);
  return lines;
}

nlohmann::ordered_json Pair(const Estimate& estimate) {
  return {{"value", estimate.mean}, {"stderr", estimate.error}};
}

nlohmann::ordered_json DistributionJson(const Distribution& values) {
  nlohmann::ordered_json json = Pair(values.mean);
  json["maximum"] = values.maximum;
  json["median"] = values.median;
  json["minimum"] = values.minimum;
  for (size_t i = 0; i < values.percentiles.size(); ++i) {
    json["percentiles"][kPercentKeys[i]] = values.percentiles[i];
  }
  return json;
}

}  // namespace

std::string FormatKl(const KlStatistics& s) {
  const auto line = [](const char* name, const Estimate& e) {
    return fmt::format("{:<30}: {:10.6f} ± {:10.6f}\n", name, e.mean, e.error);
  };
  std::string text = "====== Perplexity statistics ======\n";
  text += line("Mean PPL(Q)", s.perplexity);
  text += line("Mean PPL(base)", s.base_perplexity);
  text += fmt::format("Cor(ln(PPL(Q)), ln(PPL(base))): {:6.2f}%\n", 100 * s.correlation);
  text += line("Mean ln(PPL(Q)/PPL(base))", s.log_ratio);
  text += line("Mean PPL(Q)/PPL(base)", s.ratio);
  text += line("Mean PPL(Q)-PPL(base)", s.difference);
  text += "\n====== KL divergence statistics ======\n";
  text += fmt::format("Mean    KLD: {:10.6f} ± {:10.6f}\n", s.kld.mean.mean, s.kld.mean.error);
  text += DistributionLines(s.kld, "KLD", 1, "{:10.6f}", "", /*quartiles=*/false);
  text += "\n====== Token probability statistics ======\n";
  text += fmt::format("Mean    Δp: {:6.3f} ± {:5.3f} %\n", 100 * s.probability.mean.mean,
                      100 * s.probability.mean.error);
  text += DistributionLines(s.probability, "Δp", 100, "{:6.3f}", "%", /*quartiles=*/true);
  text += fmt::format("RMS Δp    : {:6.3f} ± {:5.3f} %\n", 100 * s.rms_probability.mean,
                      100 * s.rms_probability.error);
  text += fmt::format("Same top p: {:6.3f} ± {:5.3f} %\n", 100 * s.same_top.mean,
                      100 * s.same_top.error);
  return text;
}

nlohmann::ordered_json KlJson(const KlStatistics& s) {
  return {{"name", s.name},
          {"tokens", s.tokens},
          {"perplexity", Pair(s.perplexity)},
          {"base_perplexity", Pair(s.base_perplexity)},
          {"correlation", s.correlation},
          {"log_ratio", Pair(s.log_ratio)},
          {"ratio", Pair(s.ratio)},
          {"difference", Pair(s.difference)},
          {"kld", DistributionJson(s.kld)},
          {"probability_change", DistributionJson(s.probability)},
          {"rms_probability_change", Pair(s.rms_probability)},
          {"same_top", Pair(s.same_top)}};
}

}  // namespace flatquant
