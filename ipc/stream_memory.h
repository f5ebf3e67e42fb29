// The memory of one peer's streams: its channel, and the output that is captured of it. What must
// outlive the process that runs them.
//
//   | control: transfers, positions | index of sends | notes | inbox | out ring | output | output |
//
// Plain data with offsets, no pointers that outlive a system call. In an embedded parent it is
// anonymous memory, touched page by page as it is used and given back when the streams are idle, so
// that an idle channel costs its control page only; under a keeper it is mapped from a file. The
// code that uses it is the same: Inbox, Outbox and OutputInbox.
//
// Positions count the bytes of a stream from its first one. The byte at position p of a ring lies
// at (p + shift) % capacity: a ring that is empty, or nearly, starts again at its first page by one
// store of the shift, so small messages stay in the same few pages and seldom wrap.
//
// What a process that is killed leaves. The kernel stores how many bytes came and went, in the call
// that moves them. How far they were told stands in Progress, which moves with what is recorded of
// them (StoreProgress, or a commit of whoever records). Between the two lies what a successor tells
// again, from the first byte that was not told. So everything here counts from Progress; how far
// the running process is beyond it, only its objects know.
//
// Thread: the channel's.
#ifndef IPC_STREAM_MEMORY_H_
#define IPC_STREAM_MEMORY_H_

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/dialect.h"
#include "ipc/line_framer.h"

namespace deka::ipc {

// How far what came and went was told: one cache line of plain data.
struct alignas(64) Progress {
  uint64_t consumed = 0;    // of the inbox: what stands before it was told or skipped
  uint64_t line_begin = 0;  // before `consumed`: of the line there, too long and being skipped
  uint64_t first = 0;       // sends told or skipped; the index holds [first, accepted)
  uint64_t settled = 0;     // end of the last of those
  uint64_t output[2] = {};  // of stdout and stderr, as `consumed`
  uint64_t ends = 0;        // an OR of End: told
  uint64_t kept = 0;        // for whoever records
};
static_assert(sizeof(Progress) == 64);

class StreamMemory {
 public:
  static constexpr size_t kReadBytesMax = 64 << 10;  // of one read
  static constexpr size_t kOwnSendsMax = 1024;       // frames of the channel's own in the queue
  static constexpr size_t kNoteBytesMax = 256;
  static constexpr size_t kOwnerBytes = 1024;
  static constexpr size_t kPageBytes = 4096;

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
    enum class State : uint16_t {
      kQueued,
      kCancelled,  // its bytes are skipped
      kOwn,        // written by the channel itself: told to nobody
    };
    uint64_t end;  // position behind its last byte
    uint64_t tag;
    uint64_t note_end;  // position behind the last byte of its note
    uint32_t length;
    uint16_t note_length;
    State state;

    uint64_t begin() const { return end - length; }
  };
  static_assert(sizeof(Send) == 32);

  struct Control {
    uint64_t magic;
    uint64_t version;
    uint64_t bytes;  // of the whole memory
    uint64_t index_offset, index_capacity;
    uint64_t notes_offset, notes_capacity;
    uint64_t inbox_offset, inbox_capacity;
    uint64_t out_offset, out_capacity;
    uint64_t output_offset[2], output_capacity;  // 0: no output is captured

    Progress progress;

    Transfer receive;
    Transfer send;

    alignas(64) uint64_t inbox_shift;
    // Of the line that is being skipped, see LineFramer.
    uint64_t skipped_bytes_size;
    char skipped_bytes[LineFramer::kFirstBytes];

    alignas(64) uint64_t accepted;  // sends: the commit word of a send
    uint64_t out_shift;
    uint64_t index_shift;

    // Where the next byte of each output goes, counted from the beginning of the file, or of this
    // memory without one: splice(2) stores it in the call that moves the bytes.
    alignas(64) loff_t output_next[2];

    // For whoever records what the streams bring: plain data, and zero at first.
    alignas(64) char owner[kOwnerBytes];
  };

  // What streams need of their memory.
  struct Limits {
    size_t message_bytes_max = 1 << 20;
    size_t queue_bytes_max = 4 << 20;
    size_t queue_messages_max = 65536;
    size_t note_bytes_max = 0;         // of one send; at most kNoteBytesMax
    size_t output_line_bytes_max = 0;  // 0: no output is captured
  };

  // The size of a region that fits the limits.
  static size_t BytesFor(const Limits& limits);

  // Memory of its own: address space for all of it, pages as they are touched. RESOURCE_EXHAUSTED
  // if the system grants no address space.
  static absl::StatusOr<StreamMemory> Allocate(const Limits& limits);

  // Memory that the caller owns and keeps until this object is gone: page-aligned, at least
  // BytesFor(limits) bytes.
  struct Region {
    std::span<char> bytes;
    // The file that it is mapped from, shared, and where it begins there; -1: anonymous.
    int file = -1;
    loff_t file_offset = 0;
  };

  // A region that is all zero, else INVALID_ARGUMENT.
  static absl::StatusOr<StreamMemory> InRegion(const Region& region, const Limits& limits);

  // A region that another process has left, whenever it was killed. INVALID_ARGUMENT, which names
  // the field, if it was made by another version, for other limits, or holds what cannot be.
  static absl::StatusOr<StreamMemory> Recover(const Region& region, const Limits& limits);

  StreamMemory(StreamMemory&& other) noexcept
      : region_(std::exchange(other.region_, {})), owned_(std::exchange(other.owned_, false)) {}
  StreamMemory& operator=(StreamMemory&& other) noexcept {
    std::swap(region_, other.region_);
    std::swap(owned_, other.owned_);
    return *this;
  }
  ~StreamMemory();

  // The same memory, which this object goes on owning.
  StreamMemory View() const { return StreamMemory(region_, /*owned=*/false); }

  // True if streams with these limits can use it.
  bool Fits(const Limits& limits) const;

  // Gives the pages of empty rings back to the system; the control page stays.
  void GiveBackPages(bool inbox_empty, bool outbox_empty);
  void GiveBackOutputPages(int index);

  Control& control() const { return *reinterpret_cast<Control*>(region_.bytes.data()); }
  Progress& progress() const { return control().progress; }
  char* at(uint64_t offset) const { return region_.bytes.data() + offset; }
  int file() const { return region_.file; }
  loff_t file_offset() const { return region_.file_offset; }

 private:
  StreamMemory(const Region& region, bool owned) : region_(region), owned_(owned) {}
  void GiveBack(uint64_t begin, uint64_t end);
  absl::Status CheckPositions() const;

  Region region_;
  bool owned_;
};

// Bytes received and not told yet. Its offsets are ring offsets: position + shift, as LineFramer
// counts them.
class Inbox {
 public:
  explicit Inbox(const StreamMemory& memory)
      : control_(memory.control()), data_(memory.at(control_.inbox_offset)) {}

  // Where the next read goes: one or two parts, kReadBytesMax in all at most.
  std::span<iovec> Free(iovec (&parts)[2]) const;

  RingView view() const { return {data_, control_.inbox_capacity, end()}; }
  uint64_t begin() const { return control_.progress.consumed + control_.inbox_shift; }
  uint64_t end() const;
  bool empty() const { return begin() == end(); }

  // The position that an offset stands for.
  uint64_t PositionOf(uint64_t offset) const { return offset - control_.inbox_shift; }

  // The bytes [begin, end) in one piece: in place if they do not wrap, else copied into `scratch`.
  std::string_view Contiguous(uint64_t begin, uint64_t end, std::string& scratch) const;

  // Where a framer goes on, from what was told last.
  LineFramer::State FramerState() const;
  // What stands before the framer's position is told, or skipped.
  void Store(const LineFramer& framer);

  // Starts again at the first page if little is left. Returns by how much all offsets grew.
  uint64_t Restart();

 private:
  StreamMemory::Control& control_;
  char* data_;
};

// Frames accepted and not told as written, with the index that tells them apart. Sends are counted:
// `first` is the oldest that is not told, `accepted` stands behind the newest. The front is popped
// when it is told; its bytes stay until Store().
class Outbox {
 public:
  using Send = StreamMemory::Send;

  explicit Outbox(const StreamMemory& memory);

  bool empty() const { return first_ == control_.accepted; }
  size_t sends() const { return control_.accepted - first_; }
  // Accepted and not written. A cancelled send between two others counts until it is skipped.
  uint64_t bytes() const { return tail() - sent(); }

  uint64_t first() const { return first_; }
  uint64_t settled() const { return settled_; }

  // Whether the rings and the index have room for one more frame.
  bool HasRoom(uint64_t frame_bytes) const;

  // Copies a frame behind the last one, not committed yet; HasRoom() said yes. The value in it may
  // still be changed: one span, or two if it wraps.
  struct Value {
    std::span<char> first;
    std::span<char> second;
  };
  Value Stage(const FrameParts& frame);
  // Accepts the staged frame. `note` is kept beside it; note_bytes_max at most.
  void Commit(uint64_t tag, Send::State state, std::string_view note = {});

  // Marks the first send with this tag of which nothing is written; false if there is none.
  bool Cancel(uint64_t tag);

  // What one write takes: everything up to the next cancelled send, or, with `begun_only`, the rest
  // of a frame that is partly written. Skips cancelled ones that come first.
  std::span<iovec> Next(iovec (&parts)[2], bool begun_only);

  // Position behind the last byte written or skipped.
  uint64_t sent() const;

  // The oldest send. It is whole in the socket if its end is not behind sent().
  const Send& front() const { return at(first_); }
  // The front is told: what is not written of it is dropped.
  void PopFront();
  // The `number`th send from the oldest.
  const Send& Get(size_t number) const { return at(first_ + number); }

  // What was popped is told: its bytes may be overwritten.
  void Store();

  // `count` bytes of a frame from `offset` on, in one piece: see Inbox::Contiguous.
  std::string_view Contiguous(const Send& send, uint64_t offset, uint64_t count,
                              std::string& scratch) const;
  std::string_view Note(const Send& send, std::string& scratch) const;

 private:
  Send& at(uint64_t number) const {
    return index_[(number + control_.index_shift) & (control_.index_capacity - 1)];
  }
  // Position behind the last byte accepted.
  uint64_t tail() const { return empty() ? settled_ : at(control_.accepted - 1).end; }
  // The same for the notes, which start again when nothing is kept.
  uint64_t notes_tail() const {
    return control_.progress.first == control_.accepted ? 0 : at(control_.accepted - 1).note_end;
  }
  void SkipCancelled();
  RingView View(uint64_t end) const {
    return {data_, control_.out_capacity, end + control_.out_shift};
  }
  RingView NotesView(uint64_t end) const { return {notes_, control_.notes_capacity, end}; }

  StreamMemory::Control& control_;
  Send* index_;
  char* notes_;
  char* data_;
  uint64_t first_;
  uint64_t settled_;
  uint64_t staged_bytes_ = 0;
  size_t cancelled_ = 0;      // in the index
  uint64_t cancel_from_ = 0;  // where Cancel() looks first: behind the last one it found
};

// Output received and not told yet, of stdout (index 0) or stderr (1). Offsets are positions.
class OutputInbox {
 public:
  OutputInbox(const StreamMemory& memory, int index);

  // Reads from a pipe into the ring: into memory by read(2), into a file by splice(2), which stores
  // the count itself. Bytes read, 0 at the end, -1 with errno; ENOBUFS if the ring is full.
  ssize_t Fill(int pipe);

  RingView view() const { return {data_, control_.output_capacity, end()}; }
  uint64_t begin() const { return control_.progress.output[index_]; }
  uint64_t end() const;
  bool empty() const { return begin() == end(); }

  std::string_view Contiguous(uint64_t begin, uint64_t end, std::string& scratch) const;

  // What stands before `position` is told.
  void Store(uint64_t position) { control_.progress.output[index_] = position; }

 private:
  loff_t& next() const { return control_.output_next[index_]; }

  StreamMemory::Control& control_;
  const int index_;
  const int file_;
  const loff_t ring_begin_;  // in the file
  char* data_;
};

}  // namespace deka::ipc

#endif  // IPC_STREAM_MEMORY_H_
