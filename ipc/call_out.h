// Calls out of an object whose callee may destroy that object.
//
//   if (!tell_([&] { listener_.OnMessage(message); })) return;  // *this is gone
//
// A member of the object; one call at a time.
#ifndef IPC_CALL_OUT_H_
#define IPC_CALL_OUT_H_

namespace deka::ipc {

class CallOut {
 public:
  CallOut() = default;
  ~CallOut() {
    if (gone_ != nullptr) *gone_ = true;
  }
  CallOut(const CallOut&) = delete;
  CallOut& operator=(const CallOut&) = delete;

  // False: the object was destroyed by the call.
  template <typename Call>
  [[nodiscard]] bool operator()(Call call) {
    bool gone = false;
    gone_ = &gone;
    call();
    if (gone) return false;
    gone_ = nullptr;
    return true;
  }

 private:
  bool* gone_ = nullptr;  // of the call that is under way
};

}  // namespace deka::ipc

#endif  // IPC_CALL_OUT_H_
