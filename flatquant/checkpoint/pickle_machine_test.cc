#include "flatquant/checkpoint/pickle_machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/checkpoint/pickle_allowed.h"

namespace flatquant {
namespace {

using ::testing::ElementsAre;
using testing::ErrorMessage;
using testing::ErrorName;
using ::testing::HasSubstr;
using testing::Little;
using testing::PickleText;

// Every tensor is one float that says how it was asked for.
Tensor FakeTensor(const TensorRequest& request) {
  return Tensor::Floats({1}, {static_cast<float>(request.offset)});
}

PthTree Unpickle(const std::string& program) {
  return RunPickle(std::as_bytes(std::span(program)), "crafted.pth", FakeTensor);
}
PthTree Unpickle(const PickleText& pickle) { return Unpickle(pickle.text); }

std::string ErrorOf(const PickleText& pickle) {
  return ErrorName([&] { Unpickle(pickle); });
}
std::string ErrorOf(const std::string& program) {
  return ErrorName([&] { Unpickle(program); });
}

// The one value that the instructions make.
PthValue Value(const std::string& instructions) {
  PthTree tree = Unpickle(PickleText().Raw(instructions).Raw("."));
  return *tree.root;
}
int64_t Integer(const std::string& instructions) {
  const PthValue value = Value(instructions);
  return value.As<int64_t>() == nullptr ? -999 : *value.As<int64_t>();
}

TEST(PickleTest, Scalars) {
  EXPECT_NE(Value("N").As<PthValue::None>(), nullptr);
  EXPECT_TRUE(*Value("\x88").As<bool>());
  EXPECT_FALSE(*Value("\x89").As<bool>());
  EXPECT_EQ(Integer("K\xff"), 255);
  EXPECT_EQ(Integer("M\xff\xff"), 65535);
  EXPECT_EQ(Integer("J\xfe\xff\xff\xff"), -2);
  EXPECT_EQ(*Value(std::string("G\x3f\xf8\0\0\0\0\0\0", 9)).As<double>(), 1.5);
  EXPECT_EQ(*Value(std::string("X\3\0\0\0abc", 8)).As<std::string>(), "abc");
  EXPECT_EQ(*Value(std::string("\x8c\2\xc3\xa9", 4)).As<std::string>(), "\xc3\xa9");
  EXPECT_EQ(*Value(std::string("\x8d\1\0\0\0\0\0\0\0z", 10)).As<std::string>(), "z");
}

TEST(PickleTest, LongIntegers) {
  using std::string_literals::operator""s;
  EXPECT_EQ(Integer("\x8a\0"s), 0);
  EXPECT_EQ(Integer("\x8a\1\xff"s), -1);
  EXPECT_EQ(Integer("\x8a\2\xff\0"s), 255);
  EXPECT_EQ(Integer("\x8a\5\0\0\0\0\1"s), int64_t{1} << 32);
  EXPECT_EQ(Integer("\x8a\x8\0\0\0\0\0\0\0\x80"s), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(ErrorOf(PickleText().Raw("\x8a\x9\0\0\0\0\0\0\0\0\1."s)), "pth.bad_pickle");
}

TEST(PickleTest, Containers) {
  // {"a": [1, (2, 3)], 7: ()}, with a memo entry used twice
  PickleText pickle;
  pickle.Raw("}(").Text("a").Raw("](").Int(1).Int(2).Int(3).Raw("\x86q\5eK\7").Raw(")u.");
  const PthTree tree = Unpickle(pickle);
  const auto* dict = tree.root->As<PthValue::Dict>();
  ASSERT_NE(dict, nullptr);
  ASSERT_EQ(dict->items.size(), 2u);
  EXPECT_EQ(*dict->items[0].first->As<std::string>(), "a");
  const auto* list = dict->items[0].second->As<PthValue::List>();
  ASSERT_EQ(list->items.size(), 2u);
  EXPECT_EQ(*list->items[0]->As<int64_t>(), 1);
  const auto* pair = list->items[1]->As<PthValue::Tuple>();
  EXPECT_EQ(*pair->items[1]->As<int64_t>(), 3);
  EXPECT_EQ(*dict->items[1].first->As<int64_t>(), 7);
  EXPECT_TRUE(dict->items[1].second->As<PthValue::Tuple>()->items.empty());
}

TEST(PickleTest, TuplesOfEachLength) {
  for (const auto& [instructions, length] :
       {std::pair("K\1\x85", 1), std::pair("K\1K\2\x86", 2), std::pair("K\1K\2K\3\x87", 3),
        std::pair("(K\1K\2K\3K\4t", 4)}) {
    const PthTree tree = Unpickle(PickleText().Raw(instructions).Raw("."));
    const auto* tuple = tree.root->As<PthValue::Tuple>();
    ASSERT_EQ(tuple->items.size(), static_cast<size_t>(length));
    for (int i = 0; i < length; ++i) {
      EXPECT_EQ(*tuple->items[static_cast<size_t>(i)]->As<int64_t>(), i + 1);
    }
  }
}

TEST(PickleTest, ItemsOneByOne) {
  const PthTree tree = Unpickle(PickleText().Raw("}K\1]K\5aK\6as."));
  const auto& item = tree.root->As<PthValue::Dict>()->items.at(0);
  EXPECT_EQ(item.second->As<PthValue::List>()->items.size(), 2u);
}

TEST(PickleTest, Protocols) {
  for (int protocol = 2; protocol <= 5; ++protocol) {
    EXPECT_EQ(ErrorOf(PickleText(protocol).Raw("N.")), "");
  }
  EXPECT_EQ(ErrorOf(PickleText(1).Raw("N.")), "pth.bad_protocol");
  EXPECT_EQ(ErrorOf(PickleText(6).Raw("N.")), "pth.bad_protocol");
  EXPECT_EQ(ErrorOf(std::string("N.")), "pth.bad_protocol");
  EXPECT_EQ(ErrorOf(std::string()), "pth.bad_protocol");
  EXPECT_EQ(ErrorOf(PickleText().Raw("\x80\2N.")), "pth.bad_protocol");
}

TEST(PickleTest, FramesAndMemoOfProtocolFour) {
  using std::string_literals::operator""s;
  const std::string body = "]\x94K\1ah\0\x86."s;  // one list twice
  const PickleText good = PickleText(4).Raw("\x95").Raw(Little(body.size(), 8)).Raw(body);
  const PthTree tree = Unpickle(good);
  const auto* pair = tree.root->As<PthValue::Tuple>();
  EXPECT_EQ(pair->items[0], pair->items[1]);
  const PickleText beyond = PickleText(4).Raw("\x95").Raw(Little(body.size() + 1, 8)).Raw(body);
  EXPECT_EQ(ErrorOf(beyond), "pth.truncated_pickle");
}

TEST(PickleTest, Tensors) {
  PickleText pickle;
  pickle.Raw("}").Text("w").Tensor("HalfStorage", "0", 12, 5, {2, 3}, {3, 1}).Raw("s.");
  std::vector<TensorRequest> requests;
  const auto record = [&](const TensorRequest& request) {
    EXPECT_EQ(request.storage.key, "0");
    EXPECT_EQ(request.storage.dtype, DType::kF16);
    EXPECT_EQ(request.storage.elements, 12u);
    EXPECT_EQ(request.offset, 5u);
    EXPECT_THAT(request.shape, ElementsAre(2, 3));
    EXPECT_THAT(request.strides, ElementsAre(3, 1));
    return FakeTensor(request);
  };
  const PthTree tree = RunPickle(std::as_bytes(std::span(pickle.text)), "crafted.pth", record);
  const auto& item = tree.root->As<PthValue::Dict>()->items.at(0);
  EXPECT_EQ(item.second->As<Tensor>()->ToFloat()[0], 5.0f);
}

TEST(PickleTest, EveryStorageType) {
  const std::pair<const char*, DType> types[] = {
      {"FloatStorage", DType::kF32}, {"DoubleStorage", DType::kF64},
      {"HalfStorage", DType::kF16},  {"BFloat16Storage", DType::kBF16},
      {"LongStorage", DType::kI64},  {"IntStorage", DType::kI32},
      {"ShortStorage", DType::kI16}, {"CharStorage", DType::kI8},
      {"ByteStorage", DType::kU8},   {"BoolStorage", DType::kBool}};
  for (const auto& [name, dtype] : types) {
    PickleText pickle;
    pickle.Tensor(name, "0", 1, 0, {1}, {1}).Raw(".");
    DType seen = DType::kU8;
    RunPickle(std::as_bytes(std::span(pickle.text)), "crafted.pth",
              [&](const TensorRequest& request) {
                seen = request.storage.dtype;
                return FakeTensor(request);
              });
    EXPECT_EQ(seen, dtype) << name;
  }
}

TEST(PickleTest, ParametersAndStateDicts) {
  // Parameter(tensor) in an OrderedDict whose attribute _metadata is set.
  PickleText pickle;
  pickle.Global("collections", "OrderedDict").Raw(")R(").Text("w");
  pickle.Global("torch._utils", "_rebuild_parameter").Raw("(");
  pickle.Tensor("FloatStorage", "0", 4, 3, {1}, {1}).Raw("\x88");
  pickle.Global("collections", "OrderedDict").Raw(")RtRu");
  pickle.Raw("}").Text("_metadata").Raw("}sb.");
  const PthTree tree = Unpickle(pickle);
  const auto* dict = tree.root->As<PthValue::Dict>();
  ASSERT_EQ(dict->items.size(), 1u);
  EXPECT_EQ(dict->items[0].second->As<Tensor>()->ToFloat()[0], 3.0f);
}

TEST(PickleTest, StackGlobal) {
  PickleText pickle(4);
  pickle.Text("collections").Text("OrderedDict").Raw("\x93)R.");
  EXPECT_NE(Unpickle(pickle).root->As<PthValue::Dict>(), nullptr);
  PickleText system(4);
  system.Text("os").Text("system").Raw("\x93.");
  EXPECT_EQ(ErrorOf(system), "pth.forbidden_global");
  EXPECT_EQ(ErrorOf(PickleText(4).Text("os").Int(1).Raw("\x93.")), "pth.bad_pickle");
}

TEST(PickleTest, ForbiddenGlobals) {
  const std::pair<const char*, const char*> globals[] = {{"os", "system"},
                                                         {"posix", "system"},
                                                         {"builtins", "eval"},
                                                         {"builtins", "getattr"},
                                                         {"torch", "load"},
                                                         {"torch", "FloatStorag"},
                                                         {"torch", "FloatStorage.x"},
                                                         {"torch._utils", "_rebuild_tensor"},
                                                         {"collections", "OrderedDict.__init__"},
                                                         {"", ""}};
  for (const auto& [module, name] : globals) {
    PickleText pickle;
    pickle.Global(module, name).Raw("(").Text("touch /tmp/x").Raw("tR.");
    EXPECT_EQ(ErrorOf(pickle), "pth.forbidden_global") << module << "." << name;
  }
  const std::string message =
      ErrorMessage([] { Unpickle(PickleText().Global("os", "system").Raw(".")); });
  EXPECT_THAT(message, HasSubstr("'os.system'"));
  EXPECT_THAT(message, HasSubstr("crafted.pth"));
  EXPECT_THAT(message, HasSubstr("byte 2"));
}

// Of the 256 codes, exactly those of the allow-list get past the refusal.
TEST(PickleTest, ForbiddenOpcodes) {
  using enum PickleOpcode;
  const PickleOpcode allowed[] = {
      kMark,       kStop,       kBinFloat,   kBinInt,          kBinInt1,     kBinInt2,     kNone,
      kBinPersid,  kReduce,     kBinUnicode, kAppend,          kBuild,       kGlobal,      kAppends,
      kBinGet,     kLongBinGet, kEmptyList,  kBinPut,          kLongBinPut,  kSetItem,     kTuple,
      kEmptyTuple, kSetItems,   kEmptyDict,  kProto,           kTuple1,      kTuple2,      kTuple3,
      kNewTrue,    kNewFalse,   kLong1,      kShortBinUnicode, kBinUnicode8, kStackGlobal, kMemoize,
      kFrame};
  for (int code = 0; code < 256; ++code) {
    const bool is_allowed = std::find(std::begin(allowed), std::end(allowed),
                                      static_cast<PickleOpcode>(code)) != std::end(allowed);
    PickleText pickle;
    pickle.text += static_cast<char>(code);
    pickle.Raw(std::string(16, '\0'));
    const std::string message = ErrorMessage([&] { Unpickle(pickle); });
    // What stands after an allowed code may be refused too, but further on.
    const bool refused = message.find("[pth.forbidden_opcode]") != std::string::npos &&
                         message.find("byte 2 is") != std::string::npos;
    EXPECT_EQ(refused, !is_allowed) << "code " << code << ": " << message;
  }
}

TEST(PickleTest, TruncatedAnywhere) {
  PickleText pickle;
  pickle.Raw("}").Text("w").Tensor("FloatStorage", "0", 12, 5, {2, 3}, {3, 1}).Raw("s.");
  ASSERT_EQ(ErrorOf(pickle), "");
  for (size_t i = 3; i < pickle.text.size(); ++i) {
    EXPECT_EQ(ErrorOf(pickle.text.substr(0, i)), "pth.truncated_pickle") << i;
  }
}

TEST(PickleTest, OperandsThatDoNotFit) {
  using std::string_literals::operator""s;
  for (const std::string& instructions : {
           "."s,
           "t."s,
           "\x85."s,
           "K\1\x86."s,
           "a."s,
           "e."s,
           "u."s,
           "s."s,
           "R."s,
           "b."s,
           "Q."s,
           "q\0."s,           // put of nothing
           "h\0."s,           // get of what was never put
           "j\1\0\0\0."s,     //
           "(K\1."s,          // an open mark
           "K\1K\2."s,        // two values
           "N.N."s,           // goes on after the end
           "K\1(a."s,         // takes a value from below the mark
           "K\1K\1a."s,       // appends to an integer
           "K\1(K\1e."s,      //
           "](K\1u."s,        // sets items of a list
           "}(K\1u."s,        // a key without a value
           "}NNs."s,          // None as a key
           "}\x88Ns."s,       // a bool as a key
           "})Ns."s,          // a tuple as a key
           "X\1\0\0\0\xff."s  // not UTF-8
       }) {
    EXPECT_EQ(ErrorOf(PickleText().Raw(instructions)), "pth.bad_pickle") << instructions;
  }
  PickleText long_key;
  long_key.Raw("}").Text(std::string(2000, 'k')).Raw("Ns.");
  EXPECT_EQ(ErrorOf(long_key), "pth.bad_pickle");
  EXPECT_EQ(ErrorOf(PickleText().Global(std::string(5000, 'm'), "n").Raw(".")), "pth.bad_pickle");
  // Classes and storages are no values.
  EXPECT_EQ(ErrorOf(PickleText().Global("torch", "FloatStorage").Raw(".")), "pth.bad_pickle");
  EXPECT_EQ(ErrorOf(PickleText().Raw("]").Storage("FloatStorage", "0", 1).Raw("a.")),
            "pth.bad_pickle");
}

TEST(PickleTest, BadCalls) {
  const auto rebuild = [] { return PickleText().Global("torch._utils", "_rebuild_tensor_v2"); };
  std::vector<PickleText> pickles = {
      PickleText().Raw("K\1)R."),  // calls an integer
      PickleText().Raw("])R."),    // calls a list
      PickleText().Raw("K\1]b."),  // sets the state of an integer
      PickleText().Raw("}K\1b."),  // to an integer
      PickleText().Raw("K\1Q."),   // a persistent id that is no tuple
      PickleText().Raw("K\1\x85Q."),
      PickleText().Global("collections", "OrderedDict").Raw("N\x85R."),
      PickleText().Global("collections", "OrderedDict").Raw("NR."),
      PickleText().Global("torch", "FloatStorage").Raw(")R."),
      rebuild().Raw(")R."),
      rebuild().Raw("(NNNNNNtR."),
      rebuild().Raw("(").Storage("FloatStorage", "0", 1).Int(0).Raw("))\x89NNNtR."),
      PickleText().Global("torch._utils", "_rebuild_parameter").Raw(")R."),
      PickleText().Global("torch._utils", "_rebuild_parameter").Raw("(}\x89NtR."),
      PickleText()
          .Raw("(")
          .Text("module")
          .Global("torch", "FloatStorage")
          .Text("0")
          .Text("cpu")
          .Int(1)
          .Raw("tQ."),
      PickleText()
          .Raw("(")
          .Text("storage")
          .Global("collections", "OrderedDict")
          .Text("0")
          .Text("cpu")
          .Int(1)
          .Raw("tQ."),
      PickleText()
          .Raw("(")
          .Text("storage")
          .Global("torch", "FloatStorage")
          .Int(0)
          .Text("cpu")
          .Int(1)
          .Raw("tQ."),
      PickleText().Storage("FloatStorage", "0", -1).Raw("."),
  };
  for (const PickleText& pickle : pickles) {
    EXPECT_EQ(ErrorOf(pickle), "pth.bad_call") << pickle.text;
  }
}

TEST(PickleTest, BadTensors) {
  const auto error = [](int32_t offset, std::vector<int32_t> shape, std::vector<int32_t> strides) {
    return ErrorOf(PickleText().Tensor("FloatStorage", "0", 4, offset, shape, strides).Raw("."));
  };
  EXPECT_EQ(error(0, {2, 2}, {2, 1}), "");
  EXPECT_EQ(error(-1, {2}, {1}), "pth.bad_tensor");
  EXPECT_EQ(error(0, {-2}, {1}), "pth.bad_tensor");
  EXPECT_EQ(error(0, {2}, {-1}), "pth.bad_tensor");
  EXPECT_EQ(error(0, {2, 2}, {1}), "pth.bad_tensor");
  EXPECT_EQ(error(0, std::vector<int32_t>(33, 1), std::vector<int32_t>(33, 1)), "pth.bad_tensor");
}

TEST(PickleTest, DuplicateKeys) {
  EXPECT_EQ(ErrorOf(PickleText().Raw("}(K\1NK\2NK\1Nu.")), "pth.duplicate_key");
  EXPECT_EQ(ErrorOf(PickleText().Raw("}").Text("a").Raw("Ns").Text("a").Raw("Ns.")),
            "pth.duplicate_key");
  // 1 and "1" are two keys.
  EXPECT_EQ(ErrorOf(PickleText().Raw("}K\1Ns").Text("1").Raw("Ns.")), "");
}

TEST(PickleTest, Cycles) {
  using std::string_literals::operator""s;
  EXPECT_EQ(ErrorOf(PickleText().Raw("]q\0h\0a."s)), "pth.cycle");
  EXPECT_EQ(ErrorOf(PickleText().Raw("}q\0K\1h\0s."s)), "pth.cycle");
  EXPECT_EQ(ErrorOf(PickleText().Raw("]q\0(h\0ta."s)), "pth.cycle");  // through a tuple
}

TEST(PickleTest, Depth) {
  const auto nested = [](int depth) {
    PickleText pickle;
    pickle.Raw(")");
    for (int i = 1; i < depth; ++i) pickle.Raw("\x85");
    return ErrorOf(pickle.Raw("."));
  };
  EXPECT_EQ(nested(kMaxPthDepth), "");
  EXPECT_EQ(nested(kMaxPthDepth + 1), "pth.too_deep");
  EXPECT_EQ(nested(1'000'000), "pth.too_deep");
  // A deep value met first where it is shallow, and then again at depth.
  PickleText shared;
  shared.Raw("](");
  shared.Raw(")");
  for (int i = 1; i < 40; ++i) shared.Raw("\x85");
  shared.Raw("q\1");
  shared.Raw("h\1");
  for (int i = 1; i < 40; ++i) shared.Raw("\x85");
  EXPECT_EQ(ErrorOf(shared.Raw("e.")), "pth.too_deep");
}

// Each level refers twice to the one below: 2^n values out of n instructions.
TEST(PickleTest, SharedValuesAreCountedWhereverTheyAppear) {
  const auto laughs = [](int levels) {
    PickleText pickle;
    pickle.Raw(")");
    for (int i = 0; i < levels; ++i) pickle.Raw("q\1h\1\x86");
    return ErrorOf(pickle.Raw("."));
  };
  EXPECT_EQ(laughs(18), "");
  EXPECT_EQ(laughs(21), "pth.too_large");
  EXPECT_EQ(laughs(60), "pth.too_large");
}

TEST(PickleTest, TooManyValues) {
  EXPECT_EQ(ErrorOf(PickleText().Raw("](").Raw(std::string(kMaxPthValues, 'N')).Raw("e.")),
            "pth.too_large");
  EXPECT_EQ(ErrorOf(std::string(kMaxPickleBytes + 1, '\x80')), "pth.too_large");
  EXPECT_EQ(ErrorOf(PickleText(4).Raw("N").Raw(std::string(kMaxPthValues + 1, '\x94')).Raw(".")),
            "pth.too_large");
}

TEST(PickleTest, AMemoIndexCostsNoMemory) {
  PickleText pickle;
  pickle.Raw("]r\xff\xff\xff\xffj\xff\xff\xff\xff\x86.");
  EXPECT_EQ(ErrorOf(pickle), "");
}

TEST(PickleTest, DamagedPicklesNeverCrash) {
  PickleText pickle;
  pickle.Raw("}(").Text("w").Tensor("FloatStorage", "0", 12, 5, {2, 3}, {3, 1});
  pickle.Text("l").Raw("](K\1K\2eu.");
  ASSERT_EQ(ErrorOf(pickle), "");
  int refused = 0;
  for (size_t i = 0; i < pickle.text.size(); ++i) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string damaged = pickle.text;
      damaged[i] = static_cast<char>(byte);
      if (!ErrorOf(damaged).empty()) ++refused;
    }
  }
  EXPECT_GT(refused, 20'000);
}

}  // namespace
}  // namespace flatquant
