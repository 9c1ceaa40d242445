#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace flatquant {

template <typename Signature>
class FunctionRef;

// A callable that somebody else owns, by reference: two pointers, no allocation.
// For parameters only: it must not outlive the call that it was made for.
template <typename Result, typename... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <typename Body,
            typename = std::enable_if_t<!std::is_same_v<std::remove_cvref_t<Body>, FunctionRef> &&
                                        std::is_invocable_r_v<Result, Body&, Args...>>>
  FunctionRef(Body&& body) noexcept  // NOLINT(google-explicit-constructor): as std::function's
      : body_(const_cast<void*>(static_cast<const void*>(std::addressof(body)))),
        call_([](void* erased, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<Body>*>(erased))(
              std::forward<Args>(args)...);
        }) {}

  Result operator()(Args... args) const { return call_(body_, std::forward<Args>(args)...); }

 private:
  void* body_;
  Result (*call_)(void*, Args...);
};

}  // namespace flatquant
