// flatquant flatness: how flat methods make what is quantized, and how errors grow.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "apps/quantize_options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/compress/flatness_study.h"
#include "flatquant/report/flatness_figures.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;

struct FlatnessArguments {
  std::string directory;
  QuantizeSettings settings;
  FlatnessOptions study;
  std::string transforms;
  std::string packed;
  std::string page;
  std::string svg;
  std::string json;
};

// A figure that is drawn needs no more points of a curve, and no more cells of a row of
// the landscape, than this; both are spread evenly over ranks and positions.
constexpr size_t kPoints = 128;
constexpr size_t kCells = 64;

// Four significant digits: a picture shows no more.
double Rounded(double value) { return std::stod(fmt::format("{:.4g}", value)); }

nlohmann::ordered_json ToJson(const ChannelCurve& curve) {
  const std::vector<float>& all = curve.magnitudes;
  const size_t points = std::min(kPoints, all.size());
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  nlohmann::ordered_json magnitudes = nlohmann::ordered_json::array();
  for (size_t i = 0; i < points; ++i) {
    const size_t rank = points < 2 ? 0 : i * (all.size() - 1) / (points - 1);
    ranks.push_back(rank);
    magnitudes.push_back(Rounded(all[rank]));
  }
  double energy = 0;
  for (const float value : all) energy += static_cast<double>(value) * static_cast<double>(value);
  return {{"flatness", curve.flatness},
          {"channels", all.size()},
          {"rms", std::sqrt(energy / static_cast<double>(all.size()))},
          {"ranks", std::move(ranks)},
          {"magnitudes", std::move(magnitudes)}};
}

// The first position of each cell of a row of the landscape.
std::vector<size_t> CellStarts(size_t tokens) {
  const size_t cells = std::min(kCells, tokens);
  std::vector<size_t> starts;
  for (size_t i = 0; i < cells; ++i) starts.push_back(i * tokens / cells);
  return starts;
}

nlohmann::ordered_json CellMeans(const std::vector<float>& errors,
                                 const std::vector<size_t>& starts) {
  nlohmann::ordered_json means = nlohmann::ordered_json::array();
  for (size_t i = 0; i < starts.size(); ++i) {
    const size_t end = i + 1 < starts.size() ? starts[i + 1] : errors.size();
    double sum = 0;
    for (size_t at = starts[i]; at < end; ++at) sum += static_cast<double>(errors[at]);
    means.push_back(Rounded(sum / static_cast<double>(end - starts[i])));
  }
  return means;
}

nlohmann::ordered_json ToJson(const MethodStudy& study, const std::vector<size_t>& starts) {
  nlohmann::ordered_json sites = nlohmann::ordered_json::array();
  for (const SiteCurves& site : study.sites) {
    sites.push_back({{"block", site.block},
                     {"site", std::string(SiteName(site.site))},
                     {"activation", ToJson(site.activation)},
                     {"weight", ToJson(site.weight)}});
  }
  nlohmann::ordered_json errors = nlohmann::ordered_json::array();
  for (const auto& block : study.errors) errors.push_back(CellMeans(block, starts));
  return {{"name", study.name}, {"sites", std::move(sites)}, {"errors", std::move(errors)}};
}

nlohmann::ordered_json ToJson(const FlatnessArguments& arguments, const TokenWindows& windows,
                              const std::vector<MethodStudy>& studies) {
  const std::vector<size_t> starts = CellStarts(static_cast<size_t>(windows.length));
  nlohmann::ordered_json methods = nlohmann::ordered_json::array();
  for (const MethodStudy& study : studies) methods.push_back(ToJson(study, starts));
  return {{"format", kFlatnessFormat},
          {"version", kFlatnessVersion},
          {"model", fs::absolute(arguments.directory).lexically_normal().filename().string()},
          {"scheme", arguments.settings.options.scheme.Name()},
          {"data", windows.Fingerprint()},
          {"windows", std::min(arguments.study.windows, windows.count)},
          {"tokens", windows.length},
          {"positions", starts},
          {"methods", std::move(methods)}};
}

std::vector<std::string> DefaultMethods(const FlatnessArguments& arguments) {
  std::vector<std::string> methods = {"rtn", "smoothquant", "quarot"};
  if (arguments.packed.empty()) methods.push_back("flatquant");
  return methods;
}

void CheckArguments(const FlatnessArguments& arguments) {
  CheckModelDirectory(arguments.directory);
  if (IsPackedDirectory(arguments.directory)) {
    throw Error("flatness.packed", arguments.directory, "is quantized already",
                "name the model it was made from, and this one with --packed");
  }
  if (!arguments.packed.empty()) CheckModelDirectory(arguments.packed);
  if (!arguments.page.empty()) CheckCanCreate(arguments.page);
  if (!arguments.svg.empty()) CheckCanCreate(fs::path(arguments.svg) / "x.svg");
  const auto& methods = arguments.study.methods;
  if (!arguments.transforms.empty() && !methods.empty() &&
      std::find(methods.begin(), methods.end(), "flatquant") == methods.end()) {
    throw Error("flatness.unused_transforms", "--transforms",
                "holds FlatQuant's matrices, but that is not among --methods",
                "add flatquant to --methods");
  }
}

void WriteFile(const fs::path& path, const std::string& contents) {
  AtomicFile file(path);
  file.Write(contents);
  file.Commit();
  Log(fmt::format("wrote {}", path.string()));
}

void Run(const FlatnessArguments& given) {
  FlatnessArguments arguments = given;
  const Report report(arguments.json);
  CheckArguments(arguments);
  const SourceModel model = SourceModel::Open(arguments.directory);
  arguments.settings.Resolve(model.config());
  FlatnessOptions& study = arguments.study;
  study.quantize = arguments.settings.options;
  if (study.methods.empty()) study.methods = DefaultMethods(arguments);
  if (!arguments.transforms.empty()) study.transforms = arguments.transforms;
  PackedModel packed;
  if (!arguments.packed.empty()) {
    packed = ReadPackedModel(arguments.packed);
    study.packed = &packed;
  }
  const TokenWindows windows =
      ReadCalibration(arguments.settings, arguments.directory, model.config());
  const nlohmann::ordered_json results =
      ToJson(arguments, windows, StudyFlatness(model, windows, study));

  const std::string text =
      results.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  const FlatnessFigures figures =
      FlatnessFigures::Parse(nlohmann::json::parse(text), arguments.directory);
  for (const std::string& line : figures.Lines()) report.Line("{}", Printable(line));
  if (!arguments.page.empty()) WriteFile(arguments.page, FlatnessPage(figures, text));
  if (!arguments.svg.empty()) {
    fs::create_directories(arguments.svg);
    for (const auto& [name, svg] : figures.Drawings()) {
      WriteFile(fs::path(arguments.svg) / (name + ".svg"), svg);
    }
  }
  if (report.wants_json()) report.WriteJson(text);
}

}  // namespace

Work SetUpFlatness(CLI::App& command) {
  auto arguments = std::make_shared<FlatnessArguments>();
  FlatnessArguments& a = *arguments;
  a.settings.options.nsamples = 16;  // magnitudes need fewer tokens than training
  AddModelDirectory(command, "MODEL_DIR", "Hugging Face model directory", &a.directory);
  command
      .add_option("--methods", a.study.methods,
                  "What to compare; rtn leaves the network as it is [rtn,smoothquant,quarot and "
                  "flatquant or --packed]")
      ->delimiter(',')
      ->check(OneOf(MethodNames()))
      ->type_name("NAME[,NAME]");
  command
      .add_option("--transforms", a.transforms,
                  "FlatQuant's learned matrices (flat_matrices.pth), instead of training")
      ->type_name("FILE.pth")
      ->check(CLI::Validator(CLI::ExistingFile).description(""));
  command.add_option("--packed", a.packed, "What 'quantize' made of MODEL_DIR, as one more column")
      ->type_name("DIR");
  command.add_option("--blocks", a.study.blocks, "Blocks whose channels are looked at [all]")
      ->delimiter(',')
      ->type_name("N[,N]");
  command
      .add_option("--windows", a.study.windows, "Windows of the calibration text that are measured")
      ->type_name("N")
      ->check(Bounds(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  command.add_option("--scheme", a.settings.scheme, "Bits of weights, activations, KV cache")
      ->type_name("SCHEME")
      ->check(CheckedBy(Scheme::Parse))
      ->capture_default_str();
  command.add_option("-o,--out", a.page, "A page with all figures")->type_name("FILE.html");
  command.add_option("--svg", a.svg, "A folder for the figures, a file each")->type_name("DIR");
  AddCalibration(command, &a.settings);
  command.get_option("--calib")->required();
  AddThreads(command, &a.settings.options.threads);
  AddJson(command, &a.json);
  command.footer(
      "Flatness is the distance of the sorted channel magnitudes from the flat line of the\n"
      "same energy: 0 is flat. docs/evaluation.md defines all figures. 'flatquant report'\n"
      "takes what --json writes.\n"
      "\n"
      "Examples:\n"
      "  flatquant flatness models/demo-7m --calib jsonl:models/demo-7m/selfgen-calib.jsonl \\\n"
      "      --seqlen 512 --epochs 4 -o flatness.html\n"
      "  flatquant flatness models/demo-7m --packed demo-4bit \\\n"
      "      --calib jsonl:models/demo-7m/selfgen-calib.jsonl --json flatness.json\n"
      "  flatquant flatness MODEL --calib wikitext2:wiki.train.raw --transforms "
      "flat_matrices.pth");
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
