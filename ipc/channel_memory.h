// The memory of one channel: what must outlive the process that runs it.
//
//   | control: both transfers, positions | index of sends | inbox ring | out ring | padding
//
// Plain data with offsets, no pointers that outlive a system call. In an embedded parent it is
// anonymous memory, touched page by page as it is used and given back when the channel is idle, so
// that an idle channel costs its control page only; under a keeper it will be mapped from a file.
// The code that uses it is the same: Inbox and Outbox, which do no IO.
//
// Positions count the bytes of a stream from its first one. The byte at position p of a ring lies
// at (p + shift) % capacity: a ring that is empty, or nearly, starts again at its first page by one
// store of the shift, so small messages stay in the same few pages and seldom wrap.
//
// Thread: the channel's.
#ifndef IPC_CHANNEL_MEMORY_H_
#define IPC_CHANNEL_MEMORY_H_

#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "ipc/dialect.h"
#include "ipc/line_framer.h"

namespace deka::ipc {

class ChannelMemory {
 public:
  // One direction's system call and its outcome in one 64-byte cell. The kernel stores msg_len of
  // recvmmsg(vlen 1) and sendmmsg(vlen 1) in the same call that moves the bytes. The 4 bytes of
  // padding behind msg_len are never written by the kernel: they hold `base`, so the position is
  // base + msg_len, folded into a new base by one 8-byte store.
  struct alignas(64) Transfer {
    mmsghdr header;

    uint32_t Position() const;     // low 32 bits of the stream's position
    void Fold();                   // base = Position(), msg_len = 0
    void Advance(uint32_t bytes);  // base = Position() + bytes, msg_len = 0

    // Folds, and makes the header ready for the next call. `control` may be empty.
    void Prepare(std::span<iovec> parts, std::span<char> control);
  };
  static_assert(sizeof(Transfer) == 64);

  // One frame of the out ring.
  struct Send {
    enum class State : uint32_t {
      kQueued,
      kCancelled,  // its bytes are skipped
      kOwn,        // written by the channel itself: told to nobody
    };
    uint64_t end;  // position behind its last byte
    uint64_t tag;
    uint32_t length;
    State state;

    uint64_t begin() const { return end - length; }
  };
  static_assert(sizeof(Send) == 24);

  struct Control {
    uint64_t magic;
    uint64_t version;
    uint64_t bytes;  // of the whole memory
    uint64_t index_offset, index_capacity;
    uint64_t inbox_offset, inbox_capacity;
    uint64_t out_offset, out_capacity;

    Transfer receive;
    Transfer send;

    alignas(64) uint64_t consumed;  // of the inbox: what stands before it was told
    uint64_t inbox_shift;

    alignas(64) uint64_t first;  // sends told or skipped; the index holds [first, accepted)
    uint64_t accepted;           // sends: the commit word of a send
    uint64_t settled;            // end of the last send told or skipped
    uint64_t out_shift;
    uint64_t index_shift;
  };

  // What a channel needs of its memory.
  struct Limits {
    size_t message_bytes_max = 1 << 20;
    size_t queue_bytes_max = 4 << 20;
    size_t queue_messages_max = 65536;
  };

  static constexpr size_t kReadBytesMax = 64 << 10;  // of one read
  static constexpr size_t kOwnSendsMax = 1024;       // frames of the channel's own in the queue
  static constexpr size_t kPageBytes = 4096;

  // The size of a region that fits the limits.
  static size_t BytesFor(const Limits& limits);

  // Memory of its own: address space for all of it, pages as they are touched. RESOURCE_EXHAUSTED
  // if the system grants no address space.
  static absl::StatusOr<ChannelMemory> Allocate(const Limits& limits);

  // Memory that the caller owns and keeps until this object is gone: page-aligned, all zero, at
  // least BytesFor(limits) bytes, else INVALID_ARGUMENT.
  static absl::StatusOr<ChannelMemory> InRegion(std::span<char> region, const Limits& limits);

  ChannelMemory(ChannelMemory&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), owned_bytes_(other.owned_bytes_) {}
  ChannelMemory& operator=(ChannelMemory&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(owned_bytes_, other.owned_bytes_);
    return *this;
  }
  ~ChannelMemory();

  // True if a channel with these limits can use it.
  bool Fits(const Limits& limits) const;

  // Gives the pages of empty rings back to the system; the control page stays.
  void GiveBackPages(bool inbox_empty, bool outbox_empty);

  Control& control() const { return *reinterpret_cast<Control*>(base_); }
  char* at(uint64_t offset) const { return base_ + offset; }

 private:
  ChannelMemory(char* base, size_t owned_bytes) : base_(base), owned_bytes_(owned_bytes) {}

  char* base_;
  size_t owned_bytes_;  // 0: the region is the caller's
};

// Bytes received and not told yet. Its offsets are ring offsets: position + shift, as LineFramer
// counts them.
class Inbox {
 public:
  explicit Inbox(const ChannelMemory& memory)
      : control_(memory.control()), data_(memory.at(control_.inbox_offset)) {}

  // Where the next read goes: one or two parts, kReadBytesMax in all at most.
  std::span<iovec> Free(iovec (&parts)[2]) const;

  RingView view() const { return {data_, control_.inbox_capacity, end()}; }
  uint64_t begin() const { return control_.consumed + control_.inbox_shift; }
  uint64_t end() const;
  bool empty() const { return begin() == end(); }

  // The bytes [begin, end) in one piece: in place if they do not wrap, else copied into `scratch`.
  std::string_view Contiguous(uint64_t begin, uint64_t end, std::string& scratch) const;

  // What stands before `offset` is not needed any more.
  void Consume(uint64_t offset) { control_.consumed = offset - control_.inbox_shift; }

  // Starts again at the first page if little is left. Returns by how much all offsets grew.
  uint64_t Restart();

 private:
  ChannelMemory::Control& control_;
  char* data_;
};

// Frames accepted and not written, with the index that tells them apart. Sends are counted: `first`
// is the oldest that is not settled, `accepted` stands behind the newest.
class Outbox {
 public:
  using Send = ChannelMemory::Send;

  explicit Outbox(const ChannelMemory& memory)
      : control_(memory.control()),
        index_(reinterpret_cast<Send*>(memory.at(control_.index_offset))),
        data_(memory.at(control_.out_offset)) {}

  bool empty() const { return control_.first == control_.accepted; }
  size_t sends() const { return control_.accepted - control_.first; }
  // Accepted and not written. A cancelled send between two others counts until it is skipped.
  uint64_t bytes() const { return tail() - sent(); }

  // Whether the ring and the index have room for one more frame.
  bool HasRoom(uint64_t frame_bytes) const;

  // Copies a frame behind the last one, not committed yet; HasRoom() said yes. The value in it may
  // still be changed: one span, or two if it wraps.
  struct Value {
    std::span<char> first;
    std::span<char> second;
  };
  Value Stage(const FrameParts& frame);
  // Accepts the staged frame.
  void Commit(uint64_t tag, Send::State state);

  // Marks the first send with this tag of which nothing is written; false if there is none.
  bool Cancel(uint64_t tag);

  // What one write takes: everything up to the next cancelled send, or, with `begun_only`, the rest
  // of a frame that is partly written. Skips cancelled ones that come first.
  std::span<iovec> Next(iovec (&parts)[2], bool begun_only);

  // Position behind the last byte written or skipped.
  uint64_t sent() const;

  // The oldest send. It is whole in the socket if its end is not behind sent().
  const Send& front() const { return at(control_.first); }
  // The front is told: its bytes may be overwritten, and what is not written of it is dropped.
  void PopFront();

  // `count` bytes of a frame from `offset` on, in one piece: see Inbox::Contiguous.
  std::string_view Contiguous(const Send& send, uint64_t offset, uint64_t count,
                              std::string& scratch) const;

 private:
  Send& at(uint64_t number) const {
    return index_[(number + control_.index_shift) & (control_.index_capacity - 1)];
  }
  // Position behind the last byte accepted.
  uint64_t tail() const { return empty() ? control_.settled : at(control_.accepted - 1).end; }
  void SkipCancelled();
  void RestartIfEmpty();
  RingView View(uint64_t end) const {
    return {data_, control_.out_capacity, end + control_.out_shift};
  }

  ChannelMemory::Control& control_;
  Send* index_;
  char* data_;
  uint64_t staged_bytes_ = 0;
  size_t cancelled_ = 0;      // in the index
  uint64_t cancel_from_ = 0;  // where Cancel() looks first: behind the last one it found
};

}  // namespace deka::ipc

#endif  // IPC_CHANNEL_MEMORY_H_
