// The child's end: this process as a child with a channel, as Node's `process`.
//
// The channel is found from the environment: DEKA_IPC_ENABLED=1 with DEKA_IPC_FD (dialect deka), or
// NODE_CHANNEL_FD (dialect node). Opening it removes the channel's variables from the environment
// and sets close-on-exec, so that a grandchild never inherits it.
//
// Messages are queued by Send and written by the loop: a child that leaves main at once calls
// Disconnect first and lets the loop run until it returns. Handles that the parent sends are
// refused as Channel says.
//
// Thread: the loop's; Open changes the environment, so no other thread may read or change it then.
// Calls of the listener are as Channel's.
#ifndef IPC_PROCESS_H_
#define IPC_PROCESS_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/channel.h"
#include "ipc/dialect.h"
#include "ipc/event_loop.h"
#include "ipc/stream_memory.h"

namespace deka::ipc {

class Process : private Channel::Listener {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnMessage(Message) = 0;
    virtual void OnReadEnd() {}
    virtual void OnError(BadFrame) {}  // a frame that was no message
    virtual void OnSent(Sent) {}
    virtual void OnDrain() {}
    virtual void OnDisconnect(absl::Status) {}
  };

  // True if the environment names a channel.
  static bool HasChannel();

  // kNoChannel if the environment names none; kInvalidArgument if what it names is no open stream
  // socket, or a serialization other than json. The dialect of `options` is the environment's.
  static absl::StatusOr<std::unique_ptr<Process>> Open(EventLoop& loop, Channel::Options options,
                                                       Listener& listener);

  absl::StatusOr<Channel::Accepted> Send(std::string_view json, uint64_t tag = 0);
  // Writes what is queued, then closes; OnDisconnect follows. kChannelClosed if it is closed
  // already.
  absl::Status Disconnect();
  bool connected() const { return channel_->state() == Channel::State::kOpen; }
  Dialect dialect() const { return dialect_; }

  // As Node's process.channel.ref() and unref(): whether the open channel keeps the loop running.
  void Reference(bool referenced) { channel_->Reference(referenced); }

 private:
  Process(StreamMemory memory, Dialect dialect, Listener& listener)
      : listener_(listener), dialect_(dialect), memory_(std::move(memory)) {}

  // Channel::Listener.
  void OnMessage(Message message) override { listener_.OnMessage(message); }
  void OnReadEnd() override { listener_.OnReadEnd(); }
  void OnBadFrame(BadFrame frame) override { listener_.OnError(std::move(frame)); }
  void OnSent(Sent sent) override { listener_.OnSent(std::move(sent)); }
  void OnDrain() override { listener_.OnDrain(); }
  void OnClosed(absl::Status reason) override { listener_.OnDisconnect(std::move(reason)); }

  Listener& listener_;
  const Dialect dialect_;
  StreamMemory memory_;
  std::unique_ptr<Channel> channel_;
};

}  // namespace deka::ipc

#endif  // IPC_PROCESS_H_
