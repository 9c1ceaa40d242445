#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/packed/check.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/quantization_config.h"
#include "flatquant/packed/sizes.h"
#include "flatquant/packed/test_models.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using packed_test::ExpectError;
using packed_test::FileText;
using packed_test::Names;
using packed_test::SmallConfig;
using packed_test::SourceFolder;
using packed_test::WriteFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

void ExpectSame(const Tensor& a, const Tensor& b, const std::string& what) {
  ASSERT_EQ(a.defined(), b.defined()) << what;
  if (!a.defined()) return;
  EXPECT_EQ(a.dtype, b.dtype) << what;
  ASSERT_EQ(a.shape, b.shape) << what;
  EXPECT_EQ(std::memcmp(a.data, b.data, a.bytes()), 0) << what;
}

void ExpectSame(const Clip& a, const Clip& b) {
  EXPECT_EQ(a.max, b.max);
  EXPECT_EQ(a.min, b.min);
}

void ExpectSame(const PackedBlock& a, const PackedBlock& b) {
  ExpectSame(a.input_norm, b.input_norm, "input_norm");
  ExpectSame(a.post_attention_norm, b.post_attention_norm, "post_attention_norm");
  ExpectSame(a.q_norm, b.q_norm, "q_norm");
  ExpectSame(a.k_norm, b.k_norm, "k_norm");
  for (Linear which : kLinears) {
    const std::string name(LinearName(which));
    EXPECT_EQ(a.linear(which).bits, b.linear(which).bits) << name;
    ExpectSame(a.linear(which).weight, b.linear(which).weight, name);
    ExpectSame(a.linear(which).scale, b.linear(which).scale, name + " scale");
    ExpectSame(a.linear(which).bias, b.linear(which).bias, name + " bias");
  }
  for (Site which : kSites) {
    const std::string name(SiteName(which));
    const PackedSite& left = a.site(which);
    const PackedSite& right = b.site(which);
    ExpectSame(left.left, right.left, name + " left");
    ExpectSame(left.right, right.right, name + " right");
    EXPECT_EQ(left.act_bits, right.act_bits) << name;
    ASSERT_EQ(left.clips.size(), right.clips.size()) << name;
    for (size_t i = 0; i < left.clips.size(); ++i) ExpectSame(left.clips[i], right.clips[i]);
  }
  EXPECT_EQ(a.cache.k_bits, b.cache.k_bits);
  EXPECT_EQ(a.cache.v_bits, b.cache.v_bits);
  ExpectSame(a.cache.k_clip, b.cache.k_clip);
  ExpectSame(a.cache.v_clip, b.cache.v_clip);
  ExpectSame(a.cache.k_transform, b.cache.k_transform, "k_transform");
  ExpectSame(a.cache.q_transform, b.cache.q_transform, "q_transform");
}

void ExpectSame(const PackedModel& a, const PackedModel& b) {
  EXPECT_EQ(a.scheme, b.scheme);
  EXPECT_EQ(a.provenance, b.provenance);
  EXPECT_EQ(a.config.hidden, b.config.hidden);
  EXPECT_EQ(a.config.eos, b.config.eos);
  ExpectSame(a.embedding, b.embedding, "embedding");
  ExpectSame(a.final_norm, b.final_norm, "final_norm");
  ExpectSame(a.lm_head, b.lm_head, "lm_head");
  EXPECT_EQ(a.head.bits, b.head.bits);
  EXPECT_EQ(a.head.act_bits, b.head.act_bits);
  ExpectSame(a.head.scale, b.head.scale, "lm_head scale");
  ASSERT_EQ(a.blocks.size(), b.blocks.size());
  for (size_t i = 0; i < a.blocks.size(); ++i) {
    SCOPED_TRACE("block " + std::to_string(i));
    ExpectSame(a.blocks[i], b.blocks[i]);
  }
}

void ExpectRoundTrip(const PackedModel& model, uint64_t shard_bytes = uint64_t{5} << 30) {
  const fs::path out = testing::ScratchFolder() / "out";
  WritePackedModel(model, SourceFolder(model.config), out, {}, shard_bytes);
  const PackedModel read = ReadPackedModel(out);
  ExpectSame(model, read);
  CheckPackedModel(read, "test");
  CheckCodes(read, "test");
}

TEST(RoundTrip, EveryScheme) {
  for (const char* scheme : {"w4a4kv4", "w4a16", "w8a8", "w4a8k8v4", "w16a16kv2", "w2a3kv3",
                             "w3a4k4v16", "w5a5", "w6a6kv6", "w7a16kv7", "w16a16"}) {
    SCOPED_TRACE(scheme);
    ExpectRoundTrip(RandomPackedModel(SmallConfig(), Scheme::Parse(scheme), 1));
  }
}

TEST(RoundTrip, EveryShapeOfNetwork) {
  ModelConfig config = SmallConfig();
  config.tied_embeddings = true;
  ExpectRoundTrip(RandomPackedModel(config, Scheme{}, 2));
  config.architecture = Architecture::kQwen2;
  config.qkv_bias = true;
  ExpectRoundTrip(RandomPackedModel(config, Scheme{}, 3));
  config.architecture = Architecture::kQwen3;
  config.qkv_bias = false;
  config.qk_norm = true;
  ExpectRoundTrip(RandomPackedModel(config, Scheme{}, 4));
  config = SmallConfig();
  config.qkv_bias = config.o_bias = config.mlp_bias = true;
  ExpectRoundTrip(RandomPackedModel(config, Scheme{}, 5));
  config = SmallConfig();
  config.ffn = 43;  // odd and prime: left-over nibbles, one dense factor
  ExpectRoundTrip(RandomPackedModel(config, Scheme{}, 6));
}

TEST(RoundTrip, QuantizedHeads) {
  for (bool tied : {false, true}) {
    for (int bits : {3, 4, 8}) {
      ModelConfig config = SmallConfig();
      config.tied_embeddings = tied;
      PackedModel model = RandomPackedModel(config, Scheme{}, 2);
      QuantizeHead(bits, bits == 4 ? 16 : 8, &model);
      ExpectRoundTrip(model);
    }
  }
}

TEST(RoundTrip, BlocksThatDifferFromTheScheme) {
  ModelConfig config = SmallConfig();
  config.layers = 4;
  PackedModel model = RandomPackedModel(config, Scheme{}, 7);
  const PackedModel wide = RandomPackedModel(config, Scheme::Parse("w8a8kv8"), 8);
  const PackedModel plain = RandomPackedModel(config, Scheme::Parse("w16a16"), 9);
  model.blocks[1].linear(Linear::kDown) = wide.blocks[1].linear(Linear::kDown);
  model.blocks[1].site(Site::kMlpOut) = wide.blocks[1].site(Site::kMlpOut);
  model.blocks[2].cache = wide.blocks[2].cache;
  model.blocks[3] = plain.blocks[3];
  // One clip per linear; transforms with one matrix or none.
  model.blocks[0].site(Site::kAttnIn).clips = {{0.5f, 0.25f}, {1.0f, 1.0f}, {0.75f, 0.125f}};
  model.blocks[1].site(Site::kMlpIn).left = Tensor();
  model.blocks[2].site(Site::kMlpIn).right = Tensor();
  model.blocks[1].site(Site::kAttnOut).left = Tensor();
  ExpectRoundTrip(model);
  ExpectRoundTrip(model, 2000);

  const fs::path out = testing::ScratchFolder() / "out";
  WritePackedModel(model, SourceFolder(config), out);
  const auto written = nlohmann::json::parse(FileText(out / "config.json"));
  const auto& layers = written["quantization_config"]["layers"];
  EXPECT_EQ(layers["1"]["weights"], nlohmann::json({{"down_proj", 8}}));
  EXPECT_EQ(layers["2"]["cache"]["k_bits"], 8);
  EXPECT_EQ(layers["3"]["weights"].size(), 7u);
  EXPECT_FALSE(layers.contains("0"));
}

TEST(RoundTrip, FloatWeightsKeepTheirType) {
  PackedModel model = RandomPackedModel(SmallConfig(), Scheme::Parse("w16a16"), 10);
  std::vector<float> values = model.embedding.ToFloat();
  model.embedding = Tensor::Floats(model.embedding.shape, values);
  PackedLinear& q = model.blocks[0].linear(Linear::kQ);
  q.weight =
      Tensor::Own(DType::kF16, q.weight.shape, std::vector<uint16_t>(q.weight.elements(), 0x3c00));
  ExpectRoundTrip(model);
}

TEST(Writer, SameModelSameBytes) {
  const PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 11);
  const fs::path source = SourceFolder(model.config);
  const fs::path out = testing::ScratchFolder();
  WritePackedModel(model, source, out / "a");
  WritePackedModel(RandomPackedModel(SmallConfig(), Scheme{}, 11), source, out / "b");
  for (const std::string& name : Names(out / "a")) {
    EXPECT_EQ(FileText(out / "a" / name), FileText(out / "b" / name)) << name;
  }
  EXPECT_THAT(Names(out / "a"), ElementsAre("config.json", "model.safetensors"));
}

TEST(Writer, ShardsBeyondTheirSize) {
  const PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 12);
  const fs::path out = testing::ScratchFolder() / "out";
  constexpr uint64_t kLimit = 4000;
  WritePackedModel(model, SourceFolder(model.config), out, {}, kLimit);
  const Checkpoint checkpoint = Checkpoint::Open(out);
  EXPECT_GT(checkpoint.files().size(), 2u);
  EXPECT_TRUE(fs::exists(out / "model.safetensors.index.json"));
  EXPECT_FALSE(fs::exists(out / "model.safetensors"));
  uint64_t total = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) total += tensor.bytes();
  const auto index = nlohmann::json::parse(FileText(out / "model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_EQ(SizesOf(model).total(), total);
  for (const fs::path& file : checkpoint.files()) {
    // Its tensors and a header of less than 4 kB.
    EXPECT_LT(fs::file_size(file), kLimit + 4096) << file;
  }
}

TEST(Writer, CopiesTokenizerAndGenerationFilesOnly) {
  const PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 13);
  const fs::path source = SourceFolder(model.config);
  const std::vector<std::string> copied = {"tokenizer.json",
                                           "tokenizer.model",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "vocab.json",
                                           "merges.txt",
                                           "chat_template.jinja",
                                           "chat_template.json"};
  for (const std::string& name : copied) {
    WriteFile(source / name, std::string("\0\r\n of ", 7) + name);
  }
  WriteFile(source / "generation_config.json", "{\"eos_token_id\": [2, 3]}");
  WriteFile(source / "README.md", "the source's");
  WriteFile(source / "model.safetensors", "not ours");
  const fs::path out = testing::ScratchFolder() / "out";
  WritePackedModel(model, source, out);
  for (const std::string& name : copied) {
    EXPECT_EQ(FileText(out / name), FileText(source / name)) << name;
  }
  EXPECT_EQ(Names(out).size(), copied.size() + 3);
  EXPECT_EQ(ReadPackedModel(out).config.eos, (std::vector<int32_t>{2, 3}));
}

TEST(Writer, KeepsTheSourcesConfigurationAndReplacesItsQuantization) {
  const PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 14);
  const fs::path source = SourceFolder(model.config);
  auto config = nlohmann::ordered_json::parse(ConfigJson(model.config));
  config["architectures"] = {"LlamaForCausalLM"};
  config["quantization_config"] = {{"quant_method", "other"}, {"bits", 3}};
  config.erase("tie_word_embeddings");
  config["zz_unknown"] = {{"deep", {1, 2.5, 1e-5}}};
  WriteFile(source / "config.json", config.dump());
  const fs::path out = testing::ScratchFolder() / "out";
  WritePackedModel(model, source, out);
  auto written = nlohmann::ordered_json::parse(FileText(out / "config.json"));
  EXPECT_EQ(written["quantization_config"]["quant_method"], "flatquant");
  EXPECT_EQ(written["quantization_config"]["format_version"], 2);
  EXPECT_EQ(written["quantization_config"]["scheme"], "w4a4kv4");
  EXPECT_FALSE(written["quantization_config"].contains("bits"));
  EXPECT_EQ(written["torch_dtype"], "bfloat16");
  EXPECT_EQ(written["tie_word_embeddings"], false);
  written.erase("quantization_config");
  written.erase("tie_word_embeddings");
  config.erase("quantization_config");
  EXPECT_EQ(written, config);
}

TEST(Writer, ProvenanceThatIsNotUtf8DoesNotLoseTheModel) {
  PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 15);
  model.provenance["data"] = "text:\xff\xfe.txt";
  const fs::path out = testing::ScratchFolder() / "out";
  WritePackedModel(model, SourceFolder(model.config), out);
  EXPECT_THAT(ReadPackedModel(out).provenance["data"], HasSubstr("text:"));
}

TEST(Writer, AConfigurationOfAnotherModelIsNoticedBeforeAnythingAppears) {
  const PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 16);
  ModelConfig other = SmallConfig();
  other.hidden = 48;
  const fs::path parent = testing::ScratchFolder();
  EXPECT_THROW(WritePackedModel(model, SourceFolder(other), parent / "out"), Error);
  EXPECT_TRUE(Names(parent).empty());
}

TEST(Writer, RefusesModelsThatTheFormatCannotHold) {
  const PackedModel good = RandomPackedModel(SmallConfig(), Scheme{}, 17);
  const fs::path source = SourceFolder(good.config);
  const fs::path parent = testing::ScratchFolder();
  const auto refused = [&](const std::string& name, const auto& spoil) {
    PackedModel model = good;
    spoil(&model);
    ExpectError(name, [&] { WritePackedModel(model, source, parent / "out"); });
    EXPECT_TRUE(Names(parent).empty());
  };
  refused("packed.bad_config", [](PackedModel* m) { m->blocks.pop_back(); });
  refused("packed.bad_config", [](PackedModel* m) { m->blocks[0].linears[0].bits = 9; });
  refused("packed.bad_config", [](PackedModel* m) { m->blocks[0].sites[1].act_bits = 1; });
  refused("packed.bad_config", [](PackedModel* m) { m->blocks[0].sites[0].clips.clear(); });
  refused("packed.bad_config", [](PackedModel* m) { m->blocks[0].sites[0].clips.resize(2); });
  refused("packed.bad_config", [](PackedModel* m) { m->blocks[1].cache.v_bits = 0; });
  refused("packed.missing_tensor", [](PackedModel* m) { m->blocks[1].input_norm = {}; });
  refused("packed.missing_tensor", [](PackedModel* m) { m->blocks[1].cache.q_transform = {}; });
  refused("packed.missing_tensor", [](PackedModel* m) { m->lm_head = {}; });
  refused("packed.extra_tensor", [](PackedModel* m) { m->config.tied_embeddings = true; });
  refused("packed.extra_tensor", [](PackedModel* m) { m->blocks[1].cache.k_transform = {}; });
  refused("packed.extra_tensor",
          [](PackedModel* m) { m->blocks[0].linears[0].bias = m->final_norm; });
  refused("packed.wrong_shape",
          [](PackedModel* m) { m->blocks[0].sites[0].left = m->blocks[0].sites[3].right; });
  refused("packed.wrong_shape",
          [](PackedModel* m) { m->final_norm = m->blocks[0].linears[0].scale; });
  refused("packed.wrong_dtype", [](PackedModel* m) { m->blocks[0].linears[2].bits = 8; });
  refused("packed.bad_value", [](PackedModel* m) { m->blocks[0].sites[0].clips[0].min = 1.5f; });
  refused("packed.bad_value", [](PackedModel* m) { m->blocks[0].cache.k_clip.max = 0.0f; });
  refused("packed.bad_value", [](PackedModel* m) {
    m->final_norm = Tensor::Floats({24}, std::vector<float>(24, std::nanf("")));
  });
  // Codes of 4 bits in a linear that claims 3.
  refused("packed.bad_value", [](PackedModel* m) { m->blocks[0].linears[2].bits = 3; });
}

TEST(Sizes, CountsEverythingOnce) {
  ModelConfig config = SmallConfig();
  config.layers = 1;
  config.hidden = 512;
  config.ffn = 1376;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 64;
  const PackedModel model = RandomPackedModel(config, Scheme{}, 18);
  const PackedSizes sizes = SizesOf(model);
  const uint64_t rows = 512 + 256 + 256 + 512 + 1376 + 1376 + 512;
  const uint64_t weights = 512 * (512 + 256 + 256 + 512 + 1376 + 1376) + 1376 * 512;
  const uint64_t transforms =
      4 * (2 * (16 * 16 + 32 * 32) + 8 * 8 + 32 * 32 + 43 * 43 + 2 * 64 * 64);
  const uint64_t clips = 4 * 2 * 6;
  EXPECT_EQ(sizes.bf16_linear_bytes, 2 * weights);
  EXPECT_EQ(sizes.linear_bytes, weights / 2 + 4 * rows + transforms + clips);
  EXPECT_EQ(sizes.float_linear_bytes, 0u);
  EXPECT_EQ(sizes.other_bytes, 2u * (2 * 20 * 512) + 4 * 3 * 512);
  EXPECT_LT(sizes.linear_ratio(), 0.27);

  const PackedSizes plain = SizesOf(RandomPackedModel(config, Scheme::Parse("w16a16"), 18));
  EXPECT_EQ(plain.linear_bytes, 0u);
  EXPECT_EQ(plain.linear_ratio(), 0.0);
  EXPECT_EQ(plain.float_linear_bytes, 2 * weights);
}

}  // namespace
}  // namespace flatquant
