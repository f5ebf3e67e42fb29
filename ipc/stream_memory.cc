#include "ipc/stream_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <new>

#include "ipc/error.h"

namespace deka::ipc {
namespace {

constexpr uint64_t kMagic = 0x6d727473'616b6564u;  // "dekastrm"
constexpr uint64_t kVersion = 2;

// Less is moved to the first page rather than left where it stands.
constexpr uint64_t kMovedBytesMax = 4096;

static_assert(std::endian::native == std::endian::little,
              "msg_len is the low half of the word that Transfer folds");

// msg_len and the padding behind it.
using Word [[gnu::may_alias]] = uint64_t;

Word* WordOf(StreamMemory::Transfer* transfer) {
  static_assert(offsetof(mmsghdr, msg_len) == 56 && sizeof(mmsghdr) == 64);
  return reinterpret_cast<Word*>(reinterpret_cast<char*>(transfer) + offsetof(mmsghdr, msg_len));
}

constexpr uint64_t RoundUp(uint64_t bytes, uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

using Control = StreamMemory::Control;

// Where everything lies.
Control LayoutFor(const StreamMemory::Limits& limits) {
  constexpr uint64_t kPage = StreamMemory::kPageBytes;
  Control c = {};
  c.magic = kMagic;
  c.version = kVersion;
  c.index_offset = RoundUp(sizeof(Control), 64);
  c.index_capacity = std::bit_ceil(limits.queue_messages_max + StreamMemory::kOwnSendsMax);
  c.notes_offset = RoundUp(c.index_offset + c.index_capacity * sizeof(StreamMemory::Send), kPage);
  c.notes_capacity =
      limits.note_bytes_max == 0 ? 0 : std::bit_ceil(c.index_capacity * limits.note_bytes_max);
  c.inbox_offset = RoundUp(c.notes_offset + c.notes_capacity, kPage);
  c.inbox_capacity =
      std::bit_ceil(limits.message_bytes_max + kEnvelopeBytesMax + 1 + StreamMemory::kReadBytesMax);
  c.out_offset = c.inbox_offset + c.inbox_capacity;
  // An empty queue takes a message of any allowed size, and the channel's own frames find room in
  // a full one.
  c.out_capacity = std::bit_ceil(limits.queue_bytes_max + limits.message_bytes_max +
                                 kEnvelopeBytesMax + StreamMemory::kOwnSendsMax * 64);
  // A line, its break, a character across its cut, one read; and one byte, as a ring that is full
  // would look empty.
  c.output_capacity =
      limits.output_line_bytes_max == 0
          ? 0
          : std::bit_ceil(limits.output_line_bytes_max + 5 + StreamMemory::kReadBytesMax);
  c.output_offset[0] = RoundUp(c.out_offset + c.out_capacity, kPage);
  c.output_offset[1] = c.output_offset[0] + RoundUp(c.output_capacity, kPage);
  c.bytes = c.output_offset[1] + RoundUp(c.output_capacity, kPage);
  return c;
}

void Format(const StreamMemory::Region& region, const Control& layout) {
  Control& control = *new (region.bytes.data()) Control(layout);
  for (int i = 0; i < 2; ++i) {
    control.output_next[i] = region.file_offset + static_cast<loff_t>(layout.output_offset[i]);
  }
}

absl::Status CheckRegion(const StreamMemory::Region& region, const Control& layout) {
  if (region.bytes.size() >= layout.bytes &&
      reinterpret_cast<uintptr_t>(region.bytes.data()) % StreamMemory::kPageBytes == 0) {
    return absl::OkStatus();
  }
  return MakeError(
      Reason::kInvalidArgument,
      fmt::format("Streams with these limits need {} page-aligned bytes of memory. {} were given.",
                  layout.bytes, region.bytes.size()));
}

absl::Status Impossible(std::string_view field, uint64_t value) {
  return MakeError(Reason::kInvalidArgument,
                   fmt::format("The memory of streams cannot be taken over: its {} is {}, which "
                               "cannot be.",
                               field, value),
                   {{"field", std::string(field)}});
}

// The part of a ring that [begin, end) covers, as one or two parts.
std::span<iovec> PartsOf(const RingView& ring, uint64_t begin, uint64_t end, iovec (&parts)[2]) {
  const RingSpans spans = SpansOf(ring, begin, end);
  parts[0] = {const_cast<char*>(spans.first.data()), spans.first.size()};
  parts[1] = {const_cast<char*>(spans.second.data()), spans.second.size()};
  return {parts, spans.second.empty() ? size_t{1} : size_t{2}};
}

}  // namespace

uint32_t StreamMemory::Transfer::Position() const {
  const uint64_t word = *WordOf(const_cast<Transfer*>(this));
  return static_cast<uint32_t>(word) + static_cast<uint32_t>(word >> 32);
}

void StreamMemory::Transfer::Fold() { Advance(0); }

void StreamMemory::Transfer::Advance(uint32_t bytes) {
  const uint64_t position = Position() + bytes;
  __atomic_store_n(WordOf(this), position << 32, __ATOMIC_RELEASE);
}

void StreamMemory::Transfer::Prepare(std::span<iovec> parts, std::span<char> control) {
  Fold();
  msghdr& message = header.msg_hdr;
  message.msg_name = nullptr;
  message.msg_namelen = 0;
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  message.msg_flags = 0;
}

size_t StreamMemory::BytesFor(const Limits& limits) { return LayoutFor(limits).bytes; }

absl::StatusOr<StreamMemory> StreamMemory::Allocate(const Limits& limits) {
  const Control layout = LayoutFor(limits);
  void* base = mmap(nullptr, layout.bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        fmt::format("no address space of {} bytes for a channel: {}; lower its message and queue "
                    "limits, or the number of children",
                    layout.bytes, std::strerror(errno)));
  }
  // A page touched must not become two megabytes.
  madvise(base, layout.bytes, MADV_NOHUGEPAGE);
  const Region region = {.bytes = {static_cast<char*>(base), layout.bytes}};
  Format(region, layout);
  return StreamMemory(region, /*owned=*/true);
}

absl::StatusOr<StreamMemory> StreamMemory::InRegion(const Region& region, const Limits& limits) {
  const Control layout = LayoutFor(limits);
  if (absl::Status status = CheckRegion(region, layout); !status.ok()) return status;
  if (reinterpret_cast<const Control*>(region.bytes.data())->magic != 0) {
    return MakeError(Reason::kInvalidArgument,
                     "The memory for streams is in use. Give it a region that is all zero.");
  }
  Format(region, layout);
  return StreamMemory(region, /*owned=*/false);
}

absl::StatusOr<StreamMemory> StreamMemory::Recover(const Region& region, const Limits& limits) {
  const Control layout = LayoutFor(limits);
  if (absl::Status status = CheckRegion(region, layout); !status.ok()) return status;
  StreamMemory memory(region, /*owned=*/false);
  const Control& control = memory.control();
  // Everything before the progress is the layout.
  constexpr std::string_view kFields[] = {
      "magic",        "version",        "size",          "index offset",   "index capacity",
      "notes offset", "notes capacity", "inbox offset",  "inbox capacity", "out offset",
      "out capacity", "stdout offset",  "stderr offset", "output capacity"};
  const auto* found = reinterpret_cast<const uint64_t*>(&control);
  const auto* expected = reinterpret_cast<const uint64_t*>(&layout);
  static_assert(offsetof(Control, output_capacity) == (std::size(kFields) - 1) * sizeof(uint64_t));
  for (size_t i = 0; i < std::size(kFields); ++i) {
    if (found[i] != expected[i]) return Impossible(kFields[i], found[i]);
  }
  if (absl::Status status = memory.CheckPositions(); !status.ok()) return status;
  return memory;
}

// Nothing that a position leads to lies outside of its ring.
absl::Status StreamMemory::CheckPositions() const {
  const Control& c = control();
  const uint64_t unread = c.receive.Position() - static_cast<uint32_t>(c.progress.consumed);
  if (unread > c.inbox_capacity) return Impossible("count of bytes received", unread);
  if (c.progress.line_begin > c.progress.consumed) {
    return Impossible("begin of a line", c.progress.line_begin);
  }
  if (c.skipped_bytes_size > sizeof(c.skipped_bytes)) {
    return Impossible("count of bytes of a skipped line", c.skipped_bytes_size);
  }
  if (c.accepted < c.progress.first || c.accepted - c.progress.first > c.index_capacity) {
    return Impossible("number of sends accepted", c.accepted);
  }
  const auto* index = reinterpret_cast<const Send*>(at(c.index_offset));
  uint64_t end = 0, note_end = 0;
  for (uint64_t number = c.progress.first; number != c.accepted; ++number) {
    const Send& send = index[(number + c.index_shift) & (c.index_capacity - 1)];
    const bool first = number == c.progress.first;
    if (first ? send.end < send.length : send.begin() != end)
      return Impossible("send's end", send.end);
    if (first && send.begin() > c.progress.settled) return Impossible("first send", send.begin());
    if (send.end > c.progress.settled && send.end - c.progress.settled > c.out_capacity) {
      return Impossible("send's end", send.end);
    }
    if (send.note_length > c.notes_capacity || send.note_end < send.note_length ||
        (!first && send.note_end - send.note_length != note_end)) {
      return Impossible("end of a send's note", send.note_end);
    }
    if (send.state > Send::State::kOwn) {
      return Impossible("state of a send", static_cast<uint64_t>(send.state));
    }
    end = send.end;
    note_end = send.note_end;
  }
  const uint64_t written = std::max<int32_t>(
      0, static_cast<int32_t>(c.send.Position() - static_cast<uint32_t>(c.progress.settled)));
  if (written > std::max(end, c.progress.settled) - c.progress.settled) {
    return Impossible("count of bytes written", written);
  }
  for (int i = 0; i < 2 && c.output_capacity > 0; ++i) {
    const loff_t begin = region_.file_offset + static_cast<loff_t>(c.output_offset[i]);
    if (c.output_next[i] < begin ||
        c.output_next[i] > begin + static_cast<loff_t>(c.output_capacity)) {
      return Impossible("place of captured output", static_cast<uint64_t>(c.output_next[i]));
    }
  }
  return absl::OkStatus();
}

StreamMemory::~StreamMemory() {
  if (owned_) munmap(region_.bytes.data(), region_.bytes.size());
}

bool StreamMemory::Fits(const Limits& limits) const {
  const Control needed = LayoutFor(limits);
  const Control& c = control();
  return c.inbox_capacity >= needed.inbox_capacity && c.out_capacity >= needed.out_capacity &&
         c.index_capacity >= needed.index_capacity && c.output_capacity >= needed.output_capacity;
}

void StreamMemory::GiveBack(uint64_t begin, uint64_t end) {
  madvise(at(begin), end - begin, region_.file >= 0 ? MADV_REMOVE : MADV_DONTNEED);
}

void StreamMemory::GiveBackPages(bool inbox_empty, bool outbox_empty) {
  const Control& c = control();
  // The index begins in the control page.
  if (inbox_empty && outbox_empty) {
    GiveBack(kPageBytes, c.output_offset[0]);
  } else if (inbox_empty) {
    GiveBack(c.inbox_offset, c.out_offset);
  } else if (outbox_empty) {
    GiveBack(kPageBytes, c.inbox_offset);
    GiveBack(c.out_offset, c.output_offset[0]);
  }
}

void StreamMemory::GiveBackOutputPages(int index) {
  const Control& c = control();
  if (c.output_capacity > 0) {
    GiveBack(c.output_offset[index], c.output_offset[index] + c.output_capacity);
  }
}

uint64_t Inbox::end() const {
  const uint64_t consumed = control_.progress.consumed;
  const uint32_t unread = control_.receive.Position() - static_cast<uint32_t>(consumed);
  return consumed + unread + control_.inbox_shift;
}

std::span<iovec> Inbox::Free(iovec (&parts)[2]) const {
  const RingView ring = view();
  const uint64_t free = ring.capacity - (ring.end - begin());
  return PartsOf(ring, ring.end, ring.end + std::min<uint64_t>(free, StreamMemory::kReadBytesMax),
                 parts);
}

std::string_view Inbox::Contiguous(uint64_t begin, uint64_t end, std::string& scratch) const {
  return InOnePiece(view(), begin, end, scratch);
}

LineFramer::State Inbox::FramerState() const {
  LineFramer::State state = {.begin = control_.progress.line_begin + control_.inbox_shift,
                             .scanned = begin()};
  if (state.begin != state.scanned) {
    state.skipping = true;
    state.first_bytes_size = static_cast<uint8_t>(control_.skipped_bytes_size);
    std::memcpy(state.first_bytes, control_.skipped_bytes, sizeof(state.first_bytes));
  }
  return state;
}

void Inbox::Store(const LineFramer& framer) {
  Progress& progress = control_.progress;
  const LineFramer::State& state = framer.state();
  const uint64_t line_begin = PositionOf(state.begin);
  if (state.skipping && progress.consumed == progress.line_begin) {
    control_.skipped_bytes_size = state.first_bytes_size;
    std::memcpy(control_.skipped_bytes, state.first_bytes, sizeof(state.first_bytes));
  }
  // While a line is skipped only this store moves, which makes it one.
  if (progress.line_begin != line_begin) progress.line_begin = line_begin;
  __atomic_store_n(&progress.consumed, PositionOf(framer.position()), __ATOMIC_RELEASE);
}

uint64_t Inbox::Restart() {
  const uint64_t capacity = control_.inbox_capacity;
  const uint64_t offset = begin() & (capacity - 1);
  const uint64_t left = end() - begin();
  if (offset == 0 || left > kMovedBytesMax || offset + left > capacity) return 0;
  if (left > 0) {
    if (offset < StreamMemory::kReadBytesMax) return 0;
    std::memcpy(data_, data_ + offset, left);
  }
  const uint64_t growth = capacity - offset;
  control_.inbox_shift += growth;
  return growth;
}

Outbox::Outbox(const StreamMemory& memory)
    : control_(memory.control()),
      index_(reinterpret_cast<Send*>(memory.at(control_.index_offset))),
      notes_(memory.at(control_.notes_offset)),
      data_(memory.at(control_.out_offset)),
      first_(control_.progress.first),
      settled_(control_.progress.settled) {
  // Store() was cut short: `settled` alone had moved.
  while (!empty() && front().end <= settled_) ++first_;
  for (uint64_t number = first_; number < control_.accepted; ++number) {
    if (at(number).state == Send::State::kCancelled) ++cancelled_;
  }
  cancel_from_ = first_;
}

bool Outbox::HasRoom(uint64_t frame_bytes) const {
  const Progress& told = control_.progress;
  return tail() + frame_bytes - told.settled <= control_.out_capacity &&
         control_.accepted - told.first < control_.index_capacity;
}

Outbox::Value Outbox::Stage(const FrameParts& frame) {
  const uint64_t begin = tail();
  uint64_t position = begin;
  const auto append = [&](std::string_view bytes) {
    if (bytes.empty()) return;
    const uint64_t end = position + bytes.size();
    iovec parts[2];
    size_t copied = 0;
    for (const iovec& part :
         PartsOf(View(end), position + control_.out_shift, end + control_.out_shift, parts)) {
      std::memcpy(part.iov_base, bytes.data() + copied, part.iov_len);
      copied += part.iov_len;
    }
    position = end;
  };
  append(frame.prefix);
  const uint64_t value_begin = position;
  append(frame.value);
  const uint64_t value_end = position;
  append(frame.suffix);
  staged_bytes_ = position - begin;

  iovec parts[2];
  const std::span<iovec> value = PartsOf(View(value_end), value_begin + control_.out_shift,
                                         value_end + control_.out_shift, parts);
  const auto as_span = [](const iovec& part) {
    return std::span(static_cast<char*>(part.iov_base), part.iov_len);
  };
  return {as_span(value[0]), value.size() == 2 ? as_span(value[1]) : std::span<char>()};
}

void Outbox::Commit(uint64_t tag, Send::State state, std::string_view note) {
  Send& send = at(control_.accepted);
  send.end = tail() + staged_bytes_;
  send.tag = tag;
  send.note_end = notes_tail() + note.size();
  send.note_length = static_cast<uint16_t>(note.size());
  if (!note.empty()) {
    iovec parts[2];
    for (const iovec& part :
         PartsOf(NotesView(send.note_end), send.note_end - note.size(), send.note_end, parts)) {
      std::memcpy(part.iov_base, note.data(), part.iov_len);
      note.remove_prefix(part.iov_len);
    }
  }
  send.length = static_cast<uint32_t>(staged_bytes_);
  send.state = state;
  __atomic_store_n(&control_.accepted, control_.accepted + 1, __ATOMIC_RELEASE);
}

bool Outbox::Cancel(uint64_t tag) {
  const uint64_t first_unwritten = sent();
  const auto matches = [&](uint64_t number) {
    const Send& send = at(number);
    return send.tag == tag && send.state == Send::State::kQueued && send.begin() >= first_unwritten;
  };
  const uint64_t start = std::clamp(cancel_from_, first_, control_.accepted);
  uint64_t found = start;
  while (found < control_.accepted && !matches(found)) ++found;
  if (found == control_.accepted) {
    found = first_;
    while (found < start && !matches(found)) ++found;
    if (found == start) return false;
  }
  at(found).state = Send::State::kCancelled;
  ++cancelled_;
  cancel_from_ = found + 1;
  SkipCancelled();
  // Nor do those at the other end take room.
  while (!empty() && at(control_.accepted - 1).state == Send::State::kCancelled) {
    --control_.accepted;
    --cancelled_;
  }
  return true;
}

void Outbox::SkipCancelled() {
  while (!empty() && front().state == Send::State::kCancelled) {
    // Another process may have skipped it, and written what comes behind it, but not stored that.
    if (sent() < front().end) {
      control_.send.Advance(static_cast<uint32_t>(front().end) - control_.send.Position());
    }
    settled_ = front().end;
    ++first_;
    --cancelled_;
  }
}

std::span<iovec> Outbox::Next(iovec (&parts)[2], bool begun_only) {
  SkipCancelled();
  if (empty()) return {};
  const uint64_t begin = sent();
  uint64_t end = tail();
  if (begun_only) {
    end = begin > front().begin() ? front().end : begin;
  } else if (cancelled_ > 0) {
    uint64_t number = first_;
    while (at(number).state != Send::State::kCancelled) ++number;
    end = at(number).begin();
  }
  if (begin == end) return {};
  return PartsOf(View(end), begin + control_.out_shift, end + control_.out_shift, parts);
}

uint64_t Outbox::sent() const {
  // Behind `settled_` by what was dropped, until Store().
  const auto written =
      static_cast<int32_t>(control_.send.Position() - static_cast<uint32_t>(settled_));
  return settled_ + static_cast<uint32_t>(std::max(written, 0));
}

void Outbox::PopFront() {
  if (front().state == Send::State::kCancelled) --cancelled_;
  settled_ = front().end;
  ++first_;
}

void Outbox::Store() {
  Progress& told = control_.progress;
  // If only the first of the two is stored, it tells the other.
  if (told.settled != settled_) __atomic_store_n(&told.settled, settled_, __ATOMIC_RELEASE);
  if (told.first != first_) __atomic_store_n(&told.first, first_, __ATOMIC_RELEASE);
  const uint32_t position = control_.send.Position();
  if (const auto dropped = static_cast<int32_t>(static_cast<uint32_t>(settled_) - position);
      dropped > 0) {
    control_.send.Advance(static_cast<uint32_t>(dropped));
  }
  if (!empty() || control_.out_shift == -settled_) return;
  // Both counts go on; only where the next byte and the next entry lie starts again.
  control_.out_shift = -settled_;
  control_.index_shift = -control_.accepted;
}

std::string_view Outbox::Contiguous(const Send& send, uint64_t offset, uint64_t count,
                                    std::string& scratch) const {
  const uint64_t begin = send.begin() + offset + control_.out_shift;
  return InOnePiece(View(send.end), begin, begin + count, scratch);
}

std::string_view Outbox::Note(const Send& send, std::string& scratch) const {
  if (send.note_length == 0) return {};
  return InOnePiece(NotesView(send.note_end), send.note_end - send.note_length, send.note_end,
                    scratch);
}

OutputInbox::OutputInbox(const StreamMemory& memory, int index)
    : control_(memory.control()),
      index_(index),
      file_(memory.file()),
      ring_begin_(memory.file_offset() + static_cast<loff_t>(control_.output_offset[index])),
      data_(memory.at(control_.output_offset[index])) {}

uint64_t OutputInbox::end() const {
  const auto place = static_cast<uint64_t>(next() - ring_begin_);
  return begin() + ((place - begin()) & (control_.output_capacity - 1));
}

ssize_t OutputInbox::Fill(int pipe) {
  const uint64_t capacity = control_.output_capacity;
  if (next() == ring_begin_ + static_cast<loff_t>(capacity)) next() = ring_begin_;
  const auto place = static_cast<uint64_t>(next() - ring_begin_);
  const size_t count = std::min(
      {uint64_t{StreamMemory::kReadBytesMax}, capacity - place, capacity - 1 - (end() - begin())});
  if (count == 0) {
    errno = ENOBUFS;
    return -1;
  }
  if (file_ >= 0) return splice(pipe, nullptr, file_, &next(), count, SPLICE_F_NONBLOCK);
  const ssize_t got = read(pipe, data_ + place, count);
  if (got > 0) next() += got;
  return got;
}

std::string_view OutputInbox::Contiguous(uint64_t begin, uint64_t end, std::string& scratch) const {
  return InOnePiece(view(), begin, end, scratch);
}

}  // namespace deka::ipc
