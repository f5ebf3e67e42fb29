// A conversation over one socket: messages in, messages out.
//
//   socket -> recvmmsg -> inbox ring -> LineFramer -> Dialect -> Listener::OnMessage
//   Send   -> Dialect  -> out ring (bounded)  -> one sendmmsg for all that is queued -> socket
//
// It serves both ends: ChildProcess holds the parent's, Process the child's.
//
// A channel opens connected and closes once:
//
//   Open --> kOpen --+--------- Disconnect ---------> kFlushing -> kDraining --+--> kClosed
//                    +-- Close, end of file, I/O error ------------------------+
//
// kFlushing writes what is queued, kDraining has shut its writing side down and reads on until the
// peer closes; each has a time limit. End of file is no error. ECONNRESET is not the end: the peer
// died with unread input, and bytes it wrote before may still be queued behind the error; only a
// read of 0 bytes ends the reading.
//
// Memory: all positions and bytes lie in a ChannelMemory that the owner provides: plain data, no
// pointers, in heap or mapped from a file. The kernel stores each count itself (see
// ChannelMemory::Transfer), so nothing is lost between a system call and the bookkeeping after it.
//
// Back-pressure: Send refuses beyond the queue's limits. PauseReading leaves bytes in the socket,
// so that the peer blocks.
//
// Thread: every method, the destructor included, runs on the loop's thread. A listener is never
// called from inside a call to the channel, and may destroy the channel from any of its calls.
#ifndef IPC_CHANNEL_H_
#define IPC_CHANNEL_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/channel_memory.h"
#include "ipc/dialect.h"
#include "ipc/event_loop.h"

namespace deka::ipc {

// One whole, valid message. The views live until the listener's call returns.
struct Message {
  std::string_view json;  // the value, its bytes untouched
  bool internal = false;  // Node's own (`cmd` begins with NODE_): never a user's message
};

// A frame that was no message.
struct BadFrame {
  absl::Status reason;      // what is wrong and where; Reason::kInvalidJson, kMessageTooLarge,
                            // kHandleUnsupported...
  std::string_view bytes;   // the first bytes of it, at most Channel::kBadFrameBytes
  uint64_t size_bytes = 0;  // of the whole frame
};

// What became of a message that was accepted.
struct Sent {
  uint64_t tag = 0;            // as given to Send
  std::string_view json;       // the value as it was queued
  uint64_t written_bytes = 0;  // of the frame; the frame's size if status is OK
  absl::Status status;         // OK: the last byte is in the socket; else why not
};

class Channel {
 public:
  static constexpr size_t kBadFrameBytes = 64;

  enum class State { kOpen, kFlushing, kDraining, kClosed };

  struct Options {
    Dialect dialect = Dialect::kDeka;
    size_t message_bytes_max = 1 << 20;  // of one value, envelope not counted; ceiling 64 MiB
    size_t queue_bytes_max = 4 << 20;    // of frames accepted and not written
    size_t queue_messages_max = 65536;
    size_t json_depth_max = 256;
    std::chrono::milliseconds flush_ms_max{5000};  // kFlushing
    std::chrono::milliseconds drain_ms_max{2000};  // kDraining
    std::string debug_name;                        // for DEKA_IPC_DEBUG
  };

  // Calls come one at a time, on the loop's thread, never from inside a call to the channel.
  class Listener {
   public:
    virtual ~Listener() = default;

    // One message, in the order the peer wrote them.
    virtual void OnMessage(Message message) = 0;

    // All that one read of the socket brought has been told: the end of a batch of OnMessage and
    // OnBadFrame.
    virtual void OnReadEnd() {}

    // The channel goes on with the next frame.
    virtual void OnBadFrame(BadFrame frame) = 0;

    // Once for each message accepted, in order; a cancelled one is not told. Unwritten ones are
    // told before OnClosed.
    virtual void OnSent(Sent sent) = 0;

    // All that one write took has been told: the end of a batch of OnSent.
    virtual void OnWriteEnd() {}

    // Fewer than kSendBufferLow bytes wait again, after a Send that answered kAcceptedHigh.
    virtual void OnDrain() {}

    // Called once, after everything else. OK: the peer closed between frames, or this side did;
    // DATA_LOSS: it closed in the middle of a frame (which was told to OnBadFrame); else the I/O
    // error that ended it.
    virtual void OnClosed(absl::Status reason) = 0;
  };

  // Node's writeQueueSize limit: from here on Send answers kAcceptedHigh.
  static constexpr size_t kSendBufferLow = 131072;

  enum class Accepted {
    kAccepted,
    kAcceptedHigh,  // queued all the same, but kSendBufferLow bytes or more wait: Node's `false`;
                    // OnDrain will tell
  };

  // Takes over `socket` (a connected AF_UNIX stream), makes it non-blocking, and reads from the
  // next turn on. `memory` outlives the channel. Fails with INVALID_ARGUMENT if the memory does not
  // fit the limits.
  static absl::StatusOr<std::unique_ptr<Channel>> Open(EventLoop& loop, int socket,
                                                       ChannelMemory& memory, Options options,
                                                       Listener& listener);

  // Releases: closes the descriptor of this process without a word to the listener.
  ~Channel();

  // Queues one JSON value; never blocks. It is written at the end of the turn, gathered with all
  // that is queued then. Line breaks between tokens are sent as spaces. Refused, with nothing
  // queued: kInvalidJson, kMessageTooLarge, kReservedMessage, kQueueFull, kChannelClosed.
  absl::StatusOr<Accepted> Send(std::string_view json, uint64_t tag);

  // Takes a message out of the queue. False if its first byte is already in the socket, or it is
  // not there.
  bool Cancel(uint64_t tag);

  enum class Mode {
    kFlush,  // writes what is queued first, flush_ms_max at most
    kNow,    // drops the queue; a frame begun is still finished if the socket takes it at once
  };
  // Ends the conversation in order: what is not written is told to OnSent with its reason; messages
  // that the peer still writes are told, until it closes or drain_ms_max is over. A second call may
  // only hasten the first (kNow after kFlush).
  void Disconnect(Mode mode);

  // Closes at once, as Node's disconnect() does. OnSent for what is queued, then OnClosed, at the
  // end of the turn.
  void Close();

  void PauseReading();
  void ResumeReading();

  // As Node's channel.ref() and unref().
  void Reference(bool referenced);

  State state() const;
  size_t queued_bytes() const;
  size_t queued_messages() const;

 private:
  class Impl;
  explicit Channel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace deka::ipc

#endif  // IPC_CHANNEL_H_
