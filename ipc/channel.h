// A conversation over one socket: messages in, messages out.
//
//   socket -> recvmmsg -> inbox ring -> LineFramer -> Codec -> Listener::OnMessage
//   Send   -> Codec -> out ring (bounded) -> one sendmmsg for all that is queued -> socket
//
// It serves both ends: ChildProcess holds the parent's, Process the child's.
//
// A channel opens connected and closes once:
//
//   Open --> kOpen --+-- Disconnect, end of file --> kFlushing -> kDraining --+--> kClosed
//                    +-- Close, I/O error ------------------------------------+
//
// kFlushing writes what is queued, kDraining has shut its writing side down and reads on until the
// peer closes; each has a time limit. End of file is no error: if the peer has closed, the queue
// fails at the first write; if it only stopped writing, it still gets what was accepted for it. A
// peer that stopped reading fails the queue at the next write, and the reading goes on to its end.
// ECONNRESET is not the end: the peer died with unread input, and bytes it wrote before may still
// be queued behind the error; only a read of 0 bytes ends the reading.
//
// Memory: all positions and bytes lie in a StreamMemory that the owner provides: plain data, no
// pointers, in heap or mapped from a file. The kernel stores each count itself (see
// StreamMemory::Transfer), so nothing is lost between a system call and the bookkeeping after it.
// What a listener was told is stored when the calls of a batch have returned; a listener that
// records must have stored its progress by then, with its records. A channel that is opened on
// memory that another process has left tells again from the first byte that was not stored as told.
// A frame that wraps in a ring is made whole in a buffer that all channels of a loop share. Pages
// that are not used any more are given back when the channel was idle for a while.
//
// Back-pressure: Send refuses beyond the queue's limits. PauseReading leaves bytes in the socket,
// so that the peer blocks; a paused channel costs no time, though its peer be gone.
//
// Descriptors that a peer sends are closed: they cannot travel yet. One that a frame announces
// (NODE_HANDLE with `type`) is answered with NODE_HANDLE_NACK, which waits in the out ring like any
// frame but needs no room in the queue; a peer that does not read its answers is not read either.
// In every case OnBadFrame tells, with kHandleUnsupported.
//
// Thread: every method, the destructor included, runs on the loop's thread. A listener is never
// called from inside a call to the channel, and may destroy the channel from any of its calls.
#ifndef IPC_CHANNEL_H_
#define IPC_CHANNEL_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/call_out.h"
#include "ipc/dialect.h"
#include "ipc/event_loop.h"
#include "ipc/idle_task.h"
#include "ipc/line_framer.h"
#include "ipc/stream_memory.h"

namespace deka::ipc {

// One whole, valid message. The views live until the listener's call returns.
struct Message {
  std::string_view json;  // the value, its bytes untouched
  bool internal = false;  // Node's own (`cmd` begins with NODE_): never a user's message
};

// A frame that was no message.
struct BadFrame {
  absl::Status reason;      // what is wrong and where: kInvalidJson, kEnvelopeMissing,
                            // kMessageTooLarge, kHandleUnsupported, kFrameTruncated
  std::string_view bytes;   // the first bytes of it, at most Channel::kBadFrameBytes
  uint64_t size_bytes = 0;  // of the whole frame; 0 for a descriptor that no frame announced
};

// What became of a message that was accepted.
struct Sent {
  uint64_t tag = 0;            // as given to Send
  std::string_view json;       // the value as it was queued; lives until the call returns
  std::string_view note;       // as given to Send; lives until the call returns
  uint64_t written_bytes = 0;  // of the frame; the frame's size if status is OK
  absl::Status status;         // OK: the last byte is in the socket; else why not
};

class Channel {
 public:
  static constexpr size_t kBadFrameBytes = 64;

  enum class State { kOpen, kFlushing, kDraining, kClosed };

  struct Options {
    Dialect dialect = Dialect::kDeka;
    size_t message_bytes_max = 1 << 20;  // of one value, envelope not counted
    // Of frames accepted and not written; at least message_bytes_max. An empty queue takes one
    // message of any allowed size.
    size_t queue_bytes_max = 4 << 20;
    size_t queue_messages_max = 65536;
    size_t json_depth_max = 256;
    std::chrono::milliseconds flush_ms_max{5000};  // kFlushing
    std::chrono::milliseconds drain_ms_max{2000};  // kDraining, while reading is not paused
    std::string debug_name = {};                   // names the channel in the log

    StreamMemory::Limits memory_limits() const {
      return {.message_bytes_max = message_bytes_max,
              .queue_bytes_max = queue_bytes_max,
              .queue_messages_max = queue_messages_max};
    }
  };

  // Calls come one at a time, on the loop's thread, never from inside a call to the channel.
  class Listener {
   public:
    virtual ~Listener() = default;

    // One message, in the order the peer wrote them.
    virtual void OnMessage(Message message) = 0;

    // All that one read of the socket brought has been told, or the rest waits because reading was
    // paused: the end of a batch of OnMessage and OnBadFrame.
    virtual void OnReadEnd() {}

    // The channel goes on with the next frame.
    virtual void OnBadFrame(BadFrame frame) = 0;

    // Once for each message accepted, in order; a cancelled one is not told. Unwritten ones are
    // told before OnClosed.
    virtual void OnSent(Sent sent) = 0;

    // All that one write took, or that failed together, has been told: the end of a batch of
    // OnSent.
    virtual void OnWriteEnd() {}

    // Fewer than kSendBufferLow bytes wait again, after a Send that answered kAcceptedHigh.
    virtual void OnDrain() {}

    // Called once, after everything else. OK: the peer closed between frames, or this side did;
    // kFrameTruncated: it closed in the middle of a frame (which was told to OnBadFrame);
    // kChannelFailed: the I/O error that ended it.
    virtual void OnClosed(absl::Status reason) = 0;
  };

  // Node's writeQueueSize limit: from here on Send answers kAcceptedHigh.
  static constexpr size_t kSendBufferLow = 131072;

  enum class Accepted {
    kAccepted,
    kAcceptedHigh,  // queued all the same, but kSendBufferLow bytes or more wait: Node's `false`;
                    // OnDrain will tell
  };

  static constexpr size_t kMessageBytesCeiling = 64 << 20;

  // Takes over `socket` (a connected AF_UNIX stream), makes it non-blocking, and reads from the
  // next turn on. `memory` and `listener` outlive the channel. Fails with INVALID_ARGUMENT if the
  // limits do not fit each other or the memory; the socket is the caller's then.
  // Memory that is not new is gone on with: what is queued in it is written.
  static absl::StatusOr<std::unique_ptr<Channel>> Open(EventLoop& loop, int socket,
                                                       StreamMemory& memory, Options options,
                                                       Listener& listener);

  // Releases: closes the descriptor of this process without a word to the listener.
  ~Channel();

  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // Queues one JSON value; never blocks. It is written at the end of the turn, gathered with all
  // that is queued then. Line breaks between tokens are sent as spaces. Refused, with nothing
  // queued: kInvalidJson, kMessageTooLarge, kReservedMessage, kQueueFull, kChannelClosed.
  // `note` is kept with it in the channel's memory and told by OnSent: note_bytes_max at most.
  absl::StatusOr<Accepted> Send(std::string_view json, uint64_t tag, std::string_view note = {});

  // Takes a message out of the queue. False if its first byte is already in the socket, or it is
  // not there. Of equal tags one is taken. The room of a message in the middle of the queue is free
  // when what stands before it is written.
  bool Cancel(uint64_t tag);

  enum class Mode {
    kFlush,  // writes what is queued first, flush_ms_max at most
    kNow,    // drops the queue; a frame begun is still finished if the socket takes it at once
    kClose,  // reads no more either: Close()
  };
  // Ends the conversation in order: what is not written is told to OnSent with its reason; messages
  // that the peer still writes are told, until it closes or drain_ms_max is over. A second call may
  // only hasten the first (kNow after kFlush, kClose after both).
  void Disconnect(Mode mode);

  // Closes at once, as Node's disconnect() does: no more messages. OnSent for what is queued, then
  // OnClosed, at the end of the turn.
  void Close();

  // Nothing more is read, and nothing more is told of what was read, until reading resumes.
  void PauseReading();
  void ResumeReading();

  // As Node's channel.ref() and unref(): an unreferenced channel keeps the loop running only while
  // something is queued.
  void Reference(bool referenced);

  void set_debug_name(std::string name) { options_.debug_name = std::move(name); }

  State state() const { return state_; }
  // How far the listener was told, the call that is under way included: what is stored when it
  // returns.
  void AddProgress(Progress& progress) const;

  // Each message in the queue, the oldest first, with what Send was given.
  void ForEachQueued(absl::FunctionRef<void(uint64_t tag, std::string_view note)> queued) const;

  size_t queued_bytes() const { return outbox_.bytes(); }
  size_t queued_messages() const { return outbox_.sends(); }

 private:
  struct Workspace;

  Channel(EventLoop& loop, int socket, StreamMemory& memory, Options options, Listener& listener,
          Workspace& workspace);

  // Where a function below returns bool, false means that the listener has destroyed the channel:
  // nothing of it may be touched any more.
  void OnReady(int events);
  void OnTurnEnd();
  [[nodiscard]] bool Advance();

  // Reading.
  bool MayTell() const;
  [[nodiscard]] bool Read();
  void TakeDescriptors(const msghdr& message);
  [[nodiscard]] bool TellInbox();
  [[nodiscard]] bool TellFrame(const Frame& frame);
  [[nodiscard]] bool TellTooLong(const Frame& frame);
  [[nodiscard]] bool TellHandle(std::string_view line, uint64_t frame_begin);
  [[nodiscard]] bool TellUnannounced();
  [[nodiscard]] bool TellEnd(const Frame& frame);
  [[nodiscard]] bool TellBad(const absl::Status& reason, std::string_view bytes,
                             uint64_t size_bytes);
  void NackIfHandle(std::string_view first_bytes, uint64_t frame_begin);
  // For the frame that begins at this offset.
  void QueueNack(uint64_t frame_begin);

  // Writing.
  [[nodiscard]] bool Write();
  [[nodiscard]] bool TellWritten();
  [[nodiscard]] bool FailQueue();
  [[nodiscard]] bool TellFront();

  // Ending.
  void StartFlush();
  void StartDrain();
  void CloseSocket();
  void Fail(absl::Status reason);
  [[nodiscard]] bool Finish();

  void UpdateWatch();

  Listener& listener_;
  Options options_;
  const bool log_frames_;
  Workspace& workspace_;
  StreamMemory& memory_;
  Inbox inbox_;
  Outbox outbox_;
  Codec codec_;
  LineFramer framer_;
  const uint64_t found_bytes_end_;  // of what the inbox held at first

  int socket_;
  std::optional<Watch> watch_;
  TurnTask turn_;
  Timer limit_;  // of kFlushing, then of kDraining
  State state_ = State::kOpen;
  CallOut tell_;  // calls the listener
  bool referenced_ = true;

  bool paused_ = false;
  bool read_ended_ = false;  // the socket gives no more bytes
  bool told_all_ = false;    // nor will the listener hear of any
  struct {
    size_t count = 0;  // came and were closed
    uint64_t end = 0;  // inbox offset behind the read that brought them
  } descriptors_;

  bool write_ended_ = false;    // the socket takes no more bytes
  bool write_blocked_ = false;  // it takes none now
  bool drop_queue_ = false;     // but for the rest of a frame that is begun
  bool told_high_ = false;      // a Send answered kAcceptedHigh
  size_t nacks_queued_ = 0;

  absl::Status end_reason_;    // for OnClosed
  absl::Status queue_reason_;  // for what is not written any more

  IdleTask idle_;  // gives pages back
};

}  // namespace deka::ipc

#endif  // IPC_CHANNEL_H_
