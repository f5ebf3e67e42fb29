// A program that was forked with a channel, as Node's `process` in a child: gets the messages of
// its parent and sends its own, in the dialect that the environment names. Needs neither gRPC nor
// protobuf.
//
//   auto process = deka::Process::Open({
//       .on_message = [](deka::Process& self, std::string_view json) { (void)self.Send(json); },
//   });
//   if (!process.ok()) ...
//   (*process)->Run();
//
// Messages are JSON values, their bytes untouched. What Open() promises of the environment and of
// the descriptor stands in ipc/process.h.
//
// Thread: everything but Post() runs on the thread that calls Run(), callbacks too; before Run() on
// the one that called Open(). Callbacks come one at a time, never inside a call, and may not
// destroy the process.
#ifndef SDK_CHILD_PROCESS_H_
#define SDK_CHILD_PROCESS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/event_loop.h"
#include "ipc/process.h"

namespace deka {

class Process : private ipc::Process::Listener {
 public:
  // process.on(...). Those that are not set are not told, but for on_message, which is required.
  // The views live until the call returns.
  struct Listeners {
    std::function<void(Process&, std::string_view json)> on_message = nullptr;
    // Node's own, whose `cmd` begins with NODE_: 'internalMessage'.
    std::function<void(Process&, std::string_view json)> on_internal_message = nullptr;
    // A frame that was no message; the channel goes on with the next one. Unset: written to
    // standard error.
    std::function<void(Process&, const absl::Status& why)> on_error = nullptr;
    // Less than Node's 131,072 bytes wait again, after a Send() that answered false.
    std::function<void(Process&)> on_drain = nullptr;
    // Once, after every message. OK: one of the two sides disconnected.
    std::function<void(Process&, const absl::Status& why)> on_disconnect = nullptr;
  };

  // Told when the message's last byte is in the socket, or with the reason why it never will be.
  using SendCallback = std::function<void(const absl::Status&)>;

  // True if this program was started with a channel: Node's `process.send !== undefined`.
  static bool HasChannel() { return ipc::Process::HasChannel(); }

  // Fails as ipc::Process::Open does, and with kInvalidArgument without on_message.
  static absl::StatusOr<std::unique_ptr<Process>> Open(Listeners listeners,
                                                       ipc::Channel::Options options = {});

  // Queues one JSON value. True: accepted. False: accepted, but 131,072 bytes or more wait;
  // on_drain tells when to go on. An error: refused, nothing is queued and `on_written` is not
  // called.
  absl::StatusOr<bool> Send(std::string_view json, SendCallback on_written = nullptr);

  // Writes what is queued, then closes; on_disconnect follows. kChannelClosed the second time.
  absl::Status Disconnect();
  bool connected() const;
  ipc::Dialect dialect() const;

  // Delivers until the channel has closed and nothing posted is left, as Node does.
  void Run() { loop_.Run(); }

  // Runs `task` on Run()'s thread. Any thread.
  void Post(ipc::EventLoop::Task task) { loop_.Post(std::move(task)); }

 private:
  explicit Process(Listeners listeners) : listeners_(std::move(listeners)) {}

  void OnMessage(ipc::Message message) override;
  void OnError(ipc::BadFrame frame) override;
  void OnSent(ipc::Sent sent) override;
  void OnDrain() override;
  void OnDisconnect(absl::Status reason) override;

  const Listeners listeners_;
  ipc::EventLoop loop_;
  std::unordered_map<uint64_t, SendCallback> callbacks_;  // of messages that wait, by tag
  uint64_t last_tag_ = 0;                                 // tag 0: nobody waits for the outcome
  std::unique_ptr<ipc::Process> process_;
};

}  // namespace deka

#endif  // SDK_CHILD_PROCESS_H_
