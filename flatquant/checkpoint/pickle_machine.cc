#include "flatquant/checkpoint/pickle_machine.h"

#include <bit>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/pickle_allowed.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

constexpr std::string_view kHint = "use a file written by torch.save that holds only tensors";
constexpr uint64_t kMaxNameBytes = 1024;  // of a dict's key, a module or a class

std::string Hex(uint8_t byte) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  return {'0', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
}

class Machine {
 public:
  Machine(std::span<const std::byte> program, const std::string& where,
          const TensorMaker& make_tensor)
      : program_(program), where_(where), make_tensor_(make_tensor) {}

  PthTree Run() {
    if (program_.empty() || Peek() != PickleOpcode::kProto) {
      throw Error("pth.bad_protocol", where_, "the pickle does not start with its protocol", kHint);
    }
    bool running = true;
    while (running) {
      at_ = next_;
      const auto opcode = static_cast<PickleOpcode>(Unsigned<uint8_t>());
      running = opcode != PickleOpcode::kStop;
      if (running) Step(opcode);
    }
    tree_.root = Pop();
    if (!stack_.empty() || !marks_.empty()) Bad("stops with values left over");
    if (next_ != program_.size()) Bad("goes on after its end");
    return std::move(tree_);
  }

 private:
  [[noreturn]] void Fail(std::string_view name, const std::string& what) const {
    throw Error(name, where_,
                "the pickle's instruction at byte " + std::to_string(at_) + " " + what, kHint);
  }
  [[noreturn]] void Bad(const std::string& what) const { Fail("pth.bad_pickle", what); }

  void Step(PickleOpcode opcode) {
    using enum PickleOpcode;
    switch (opcode) {
      case kProto:
        return Proto();
      case kFrame:
        if (Unsigned<uint64_t>() > program_.size() - next_) Truncated();
        return;
      case kMark:
        marks_.push_back(stack_.size());
        return;
      case kNone:
        return Push(PthValue::None{});
      case kNewTrue:
        return Push(true);
      case kNewFalse:
        return Push(false);
      case kBinInt:
        return Push(int64_t{std::bit_cast<int32_t>(Unsigned<uint32_t>())});
      case kBinInt1:
        return Push(int64_t{Unsigned<uint8_t>()});
      case kBinInt2:
        return Push(int64_t{Unsigned<uint16_t>()});
      case kLong1:
        return Long(Unsigned<uint8_t>());
      case kBinFloat:
        return Push(std::bit_cast<double>(__builtin_bswap64(Unsigned<uint64_t>())));
      case kShortBinUnicode:
        return Text(Unsigned<uint8_t>());
      case kBinUnicode:
        return Text(Unsigned<uint32_t>());
      case kBinUnicode8:
        return Text(Unsigned<uint64_t>());
      case kEmptyList:
        return Push(PthValue::List{});
      case kEmptyDict:
        return Push(PthValue::Dict{});
      case kEmptyTuple:
        return Push(PthValue::Tuple{});
      case kTuple1:
        return MakeTuple(1);
      case kTuple2:
        return MakeTuple(2);
      case kTuple3:
        return MakeTuple(3);
      case kTuple:
        return Push(PthValue::Tuple{PopMark()});
      case kAppend:
        return Append({Pop()});
      case kAppends:
        return Append(PopMark());
      case kSetItem: {
        const PthValue* value = Pop();
        return SetItems({Pop(), value});
      }
      case kSetItems:
        return SetItems(PopMark());
      case kBinGet:
        return Recall(Unsigned<uint8_t>());
      case kLongBinGet:
        return Recall(Unsigned<uint32_t>());
      case kBinPut:
        return Remember(Unsigned<uint8_t>());
      case kLongBinPut:
        return Remember(Unsigned<uint32_t>());
      case kMemoize:
        return Remember(static_cast<uint32_t>(memo_.size()));
      case kGlobal: {
        const std::string module = Line();
        return PushGlobal(module, Line());
      }
      case kStackGlobal: {
        const std::string name = Name(Pop());
        return PushGlobal(Name(Pop()), name);
      }
      case kBinPersid:
        return PersistentId();
      case kReduce:
        return Reduce();
      case kBuild:
        return Build();
      default:
        Fail("pth.forbidden_opcode",
             "is " + Hex(static_cast<uint8_t>(opcode)) + ", which data do not need");
    }
  }

  // --- the program's bytes ---

  [[noreturn]] void Truncated() const {
    Fail("pth.truncated_pickle", "runs past the end of the pickle");
  }
  PickleOpcode Peek() const { return static_cast<PickleOpcode>(program_[next_]); }

  std::string_view Take(uint64_t bytes) {
    if (bytes > program_.size() - next_) Truncated();
    const auto* start = reinterpret_cast<const char*>(program_.data()) + next_;
    next_ += bytes;
    return {start, bytes};
  }
  template <typename T>
  T Unsigned() {
    uint64_t value = 0;
    int shift = 0;
    for (char c : Take(sizeof(T))) {
      value |= uint64_t{static_cast<uint8_t>(c)} << shift;
      shift += 8;
    }
    return static_cast<T>(value);
  }
  std::string Line() {
    std::string line;
    for (char c = Take(1)[0]; c != '\n'; c = Take(1)[0]) {
      if (line.size() == kMaxNameBytes) Bad("names something with too long a name");
      line += c;
    }
    return line;
  }

  // --- the stack, the marks and the memo ---

  template <typename T>
  void Push(T value) {
    if (tree_.values.size() == kMaxPthValues) {
      Fail("pth.too_large", "makes more than " + std::to_string(kMaxPthValues) + " values");
    }
    stack_.push_back(&tree_.values.emplace_back(PthValue{std::move(value)}));
  }
  // Values above the last mark are all that an instruction may take.
  size_t Floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PthValue* Top() const {
    if (stack_.size() <= Floor()) Bad("takes a value from an empty stack");
    return stack_.back();
  }
  PthValue* Pop() {
    PthValue* value = Top();
    stack_.pop_back();
    return value;
  }
  std::vector<const PthValue*> PopMark() {
    if (marks_.empty()) Bad("needs a mark that is not there");
    std::vector<const PthValue*> values(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()),
                                        stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }
  void Remember(uint32_t index) {
    PthValue* top = Top();
    if (memo_.size() == kMaxPthValues) Fail("pth.too_large", "remembers too many values");
    memo_[index] = top;
  }
  void Recall(uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) Bad("recalls value " + std::to_string(index) + ", never remembered");
    stack_.push_back(found->second);
  }

  // --- values ---

  void Proto() {
    const uint8_t protocol = Unsigned<uint8_t>();
    if (at_ != 0 || protocol < 2 || protocol > 5) {
      throw Error("pth.bad_protocol", where_,
                  "has pickle protocol " + std::to_string(protocol) + " at byte " +
                      std::to_string(at_) + "; 2 to 5 at the start are read",
                  kHint);
    }
  }

  // Two's complement, little-endian, `bytes` long.
  void Long(uint8_t bytes) {
    const std::string_view digits = Take(bytes);
    if (bytes > 8) Bad("makes an integer beyond 64 bits");
    uint64_t value = 0;
    for (size_t i = 0; i < digits.size(); ++i) {
      value |= uint64_t{static_cast<uint8_t>(digits[i])} << (8 * i);
    }
    const bool negative = bytes > 0 && (digits.back() & 0x80) != 0;
    if (negative && bytes < 8) value |= ~uint64_t{0} << (8 * bytes);
    Push(std::bit_cast<int64_t>(value));
  }

  void Text(uint64_t bytes) {
    const std::string_view text = Take(bytes);
    if (CheckJsonText(text)) Bad("makes a string that is not UTF-8 text");
    Push(std::string(text));
  }

  void MakeTuple(size_t count) {
    PthValue::Tuple tuple;
    tuple.items.resize(count);
    for (size_t i = count; i-- > 0;) tuple.items[i] = Pop();
    Push(std::move(tuple));
  }

  void Append(const std::vector<const PthValue*>& items) {
    auto* list = std::get_if<PthValue::List>(&Top()->data);
    if (list == nullptr) Bad("appends to something that is not a list");
    list->items.insert(list->items.end(), items.begin(), items.end());
  }

  void SetItems(const std::vector<const PthValue*>& items) {
    auto* dict = std::get_if<PthValue::Dict>(&Top()->data);
    if (dict == nullptr) Bad("sets items of something that is not a dict");
    if (items.size() % 2 != 0) Bad("sets a key without a value");
    for (size_t i = 0; i < items.size(); i += 2) {
      if (items[i]->As<int64_t>() == nullptr) Name(items[i]);
      dict->items.emplace_back(items[i], items[i + 1]);
    }
  }

  const std::string& Name(const PthValue* value) const {
    const auto* name = value->As<std::string>();
    if (name == nullptr) Bad("uses something as a name that is no string");
    if (name->size() > kMaxNameBytes) Bad("uses too long a name");
    return *name;
  }

  void PushGlobal(const std::string& module, const std::string& name) {
    for (const AllowedGlobal& allowed : kAllowedGlobals) {
      if (allowed.module == module && allowed.name == name) return Push(allowed.global);
    }
    Fail("pth.forbidden_global", "names " + Quoted(module + "." + name) +
                                     ", which is not allowed: nothing but tensors, " +
                                     "dicts, lists, tuples, numbers and strings is read");
  }

  // --- PyTorch's conventions ---

  // The argument as a T, or pth.bad_call.
  template <typename T>
  const T& Argument(const PthValue::Tuple& arguments, size_t i, std::string_view function) const {
    const T* value = i < arguments.items.size() ? arguments.items[i]->As<T>() : nullptr;
    if (value == nullptr) {
      Fail("pth.bad_call",
           "gives " + std::string(function) + " a wrong argument " + std::to_string(i + 1));
    }
    return *value;
  }

  // ("storage", type, key, device, elements)
  void PersistentId() {
    constexpr std::string_view kFunction = "a storage";
    const PthValue* id = Pop();
    const auto* fields = id->As<PthValue::Tuple>();
    if (fields == nullptr || fields->items.size() != 5) {
      Fail("pth.bad_call", "refers to a storage in an unknown way");
    }
    if (Argument<std::string>(*fields, 0, kFunction) != "storage") {
      Fail("pth.bad_call", "refers to something that is not a storage");
    }
    const auto& type = Argument<PthValue::Global>(*fields, 1, kFunction);
    const auto& key = Argument<std::string>(*fields, 2, kFunction);
    Argument<std::string>(*fields, 3, kFunction);
    const int64_t elements = Argument<int64_t>(*fields, 4, kFunction);
    if (type.which != PthGlobal::kStorageType || elements < 0) {
      Fail("pth.bad_call", "gives a storage a wrong type or size");
    }
    Push(PthStorage{type.dtype, key, static_cast<uint64_t>(elements)});
  }

  void Reduce() {
    const PthValue* argument = Pop();
    const PthValue* callee = Pop();
    const auto* function = callee->As<PthValue::Global>();
    const auto* arguments = argument->As<PthValue::Tuple>();
    if (function == nullptr || arguments == nullptr) {
      Fail("pth.bad_call", "calls something that is not a function, or without a tuple");
    }
    switch (function->which) {
      case PthGlobal::kOrderedDict:
        if (!arguments->items.empty()) Fail("pth.bad_call", "gives OrderedDict arguments");
        return Push(PthValue::Dict{});
      case PthGlobal::kRebuildTensor:
        return RebuildTensor(*arguments);
      case PthGlobal::kRebuildParameter: {
        // (data, requires_grad, backward_hooks): its data, for us.
        Tensor data = Argument<Tensor>(*arguments, 0, "_rebuild_parameter");
        return Push(std::move(data));
      }
      case PthGlobal::kStorageType:
        Fail("pth.bad_call", "calls a storage type");
    }
  }

  // (storage, offset, size, stride, requires_grad, backward_hooks[, metadata])
  void RebuildTensor(const PthValue::Tuple& arguments) {
    constexpr std::string_view kFunction = "_rebuild_tensor_v2";
    if (arguments.items.size() < 6 || arguments.items.size() > 7) {
      Fail("pth.bad_call", "gives _rebuild_tensor_v2 a wrong number of arguments");
    }
    const auto numbers = [&](size_t i) {
      std::vector<int64_t> values;
      const auto& tuple = Argument<PthValue::Tuple>(arguments, i, kFunction);
      if (tuple.items.size() > kMaxPthDimensions) {
        Fail("pth.bad_tensor", "makes a tensor of too many dimensions");
      }
      for (size_t k = 0; k < tuple.items.size(); ++k) {
        values.push_back(Argument<int64_t>(tuple, k, "a tensor's size or stride"));
        if (values.back() < 0) Fail("pth.bad_tensor", "makes a tensor of negative size or stride");
      }
      return values;
    };
    const auto& storage = Argument<PthStorage>(arguments, 0, kFunction);
    const int64_t offset = Argument<int64_t>(arguments, 1, kFunction);
    if (offset < 0) Fail("pth.bad_tensor", "makes a tensor with a negative offset");
    TensorRequest request{storage, static_cast<uint64_t>(offset), numbers(2), numbers(3)};
    if (request.shape.size() != request.strides.size()) {
      Fail("pth.bad_tensor", "makes a tensor with more sizes than strides, or fewer");
    }
    Push(make_tensor_(request));
  }

  // torch.nn.Module.state_dict leaves version numbers on its OrderedDict as an
  // attribute; they are dropped. No other object has a state to set.
  void Build() {
    const PthValue* state = Pop();
    if (Top()->As<PthValue::Dict>() == nullptr || state->As<PthValue::Dict>() == nullptr) {
      Fail("pth.bad_call", "sets the state of something that is not a dict");
    }
  }

  std::span<const std::byte> program_;
  const std::string& where_;
  const TensorMaker& make_tensor_;
  size_t next_ = 0;  // byte that is read next
  size_t at_ = 0;    // byte of the current instruction
  PthTree tree_;
  std::vector<PthValue*> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::unordered_map<uint32_t, PthValue*> memo_;
};

}  // namespace

PthTree RunPickle(std::span<const std::byte> program, const std::string& where,
                  const TensorMaker& make_tensor) {
  if (program.size() > kMaxPickleBytes) {
    throw Error("pth.too_large", where,
                "has a pickle of " + std::to_string(program.size()) + " bytes, more than the " +
                    std::to_string(kMaxPickleBytes) + " allowed",
                kHint);
  }
  PthTree tree = Machine(program, where, make_tensor).Run();
  ValidatePthTree(tree, where);
  return tree;
}

}  // namespace flatquant
