// The child's end: this process as a child with a channel, as Node's `process`.
//
// The channel is found from the environment: DEKA_IPC_ENABLED=1 with DEKA_IPC_FD (dialect deka), or
// NODE_CHANNEL_FD (dialect node). Opening it removes the channel's variables from the environment
// and sets close-on-exec, so that a grandchild never inherits it.
//
// Thread: the loop's.
#ifndef IPC_PROCESS_H_
#define IPC_PROCESS_H_

#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/channel.h"
#include "ipc/event_loop.h"

namespace deka::ipc {

class Process {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnMessage(Message) = 0;
    virtual void OnError(BadFrame) {}
    virtual void OnSent(Sent) {}
    virtual void OnDrain() {}
    virtual void OnDisconnect(absl::Status) {}
  };

  // True if the environment names a channel.
  static bool HasChannel();

  // kNoChannel if the environment names none; INVALID_ARGUMENT if what it names is no open stream
  // socket.
  static absl::StatusOr<std::unique_ptr<Process>> Open(EventLoop& loop, Channel::Options options,
                                                       Listener& listener);

  ~Process();

  absl::StatusOr<Channel::Accepted> Send(std::string_view json, uint64_t tag = 0);
  // Writes what is queued, then closes; OnDisconnect follows.
  absl::Status Disconnect();
  bool connected() const;
  Dialect dialect() const;
  void Reference(bool referenced);

 private:
  class Impl;
  explicit Process(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace deka::ipc

#endif  // IPC_PROCESS_H_
