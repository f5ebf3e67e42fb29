#include "ipc/channel_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "ipc/error.h"

namespace deka::ipc {
namespace {

constexpr uint64_t kMagic = 0x6b656461'6368616eu;  // "nahcadek"
constexpr uint64_t kVersion = 1;

// Less is moved to the first page rather than left where it stands.
constexpr uint64_t kMovedBytesMax = 4096;

static_assert(std::endian::native == std::endian::little,
              "msg_len is the low half of the word that Transfer folds");

// msg_len and the padding behind it.
using Word [[gnu::may_alias]] = uint64_t;

Word* WordOf(ChannelMemory::Transfer* transfer) {
  static_assert(offsetof(mmsghdr, msg_len) == 56 && sizeof(mmsghdr) == 64);
  return reinterpret_cast<Word*>(reinterpret_cast<char*>(transfer) + offsetof(mmsghdr, msg_len));
}

constexpr uint64_t RoundUp(uint64_t bytes, uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

struct Layout {
  explicit Layout(const ChannelMemory::Limits& limits) {
    index_offset = RoundUp(sizeof(ChannelMemory::Control), 64);
    index_capacity = std::bit_ceil(limits.queue_messages_max + ChannelMemory::kOwnSendsMax);
    inbox_offset = RoundUp(index_offset + index_capacity * sizeof(ChannelMemory::Send),
                           ChannelMemory::kPageBytes);
    inbox_capacity = std::bit_ceil(limits.message_bytes_max + kEnvelopeBytesMax + 1 +
                                   ChannelMemory::kReadBytesMax);
    out_offset = inbox_offset + inbox_capacity;
    // An empty queue takes a message of any allowed size, and the channel's own frames find room in
    // a full one.
    out_capacity = std::bit_ceil(limits.queue_bytes_max + limits.message_bytes_max +
                                 kEnvelopeBytesMax + ChannelMemory::kOwnSendsMax * 64);
    bytes = RoundUp(out_offset + out_capacity, ChannelMemory::kPageBytes);
  }

  uint64_t index_offset, index_capacity;
  uint64_t inbox_offset, inbox_capacity;
  uint64_t out_offset, out_capacity;
  uint64_t bytes;
};

void Format(char* base, const Layout& layout) {
  auto& control = *reinterpret_cast<ChannelMemory::Control*>(base);
  control.magic = kMagic;
  control.version = kVersion;
  control.bytes = layout.bytes;
  control.index_offset = layout.index_offset;
  control.index_capacity = layout.index_capacity;
  control.inbox_offset = layout.inbox_offset;
  control.inbox_capacity = layout.inbox_capacity;
  control.out_offset = layout.out_offset;
  control.out_capacity = layout.out_capacity;
}

// The part of a ring that [begin, end) covers, as one or two parts.
std::span<iovec> PartsOf(const RingView& ring, uint64_t begin, uint64_t end, iovec (&parts)[2]) {
  const RingSpans spans = SpansOf(ring, begin, end);
  parts[0] = {const_cast<char*>(spans.first.data()), spans.first.size()};
  parts[1] = {const_cast<char*>(spans.second.data()), spans.second.size()};
  return {parts, spans.second.empty() ? size_t{1} : size_t{2}};
}

std::string_view InOnePiece(const RingView& ring, uint64_t begin, uint64_t end,
                            std::string& scratch) {
  const RingSpans spans = SpansOf(ring, begin, end);
  if (spans.second.empty()) return spans.first;
  scratch.assign(spans.first).append(spans.second);
  return scratch;
}

}  // namespace

uint32_t ChannelMemory::Transfer::Position() const {
  const uint64_t word = *WordOf(const_cast<Transfer*>(this));
  return static_cast<uint32_t>(word) + static_cast<uint32_t>(word >> 32);
}

void ChannelMemory::Transfer::Fold() { Advance(0); }

void ChannelMemory::Transfer::Advance(uint32_t bytes) {
  const uint64_t position = Position() + bytes;
  __atomic_store_n(WordOf(this), position << 32, __ATOMIC_RELEASE);
}

void ChannelMemory::Transfer::Prepare(std::span<iovec> parts, std::span<char> control) {
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

size_t ChannelMemory::BytesFor(const Limits& limits) { return Layout(limits).bytes; }

absl::StatusOr<ChannelMemory> ChannelMemory::Allocate(const Limits& limits) {
  const Layout layout(limits);
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
  Format(static_cast<char*>(base), layout);
  return ChannelMemory(static_cast<char*>(base), layout.bytes);
}

absl::StatusOr<ChannelMemory> ChannelMemory::InRegion(std::span<char> region,
                                                      const Limits& limits) {
  const Layout layout(limits);
  if (region.size() < layout.bytes ||
      reinterpret_cast<uintptr_t>(region.data()) % kPageBytes != 0) {
    return MakeError(
        Reason::kInvalidArgument,
        fmt::format(
            "A channel with these limits needs {} page-aligned bytes of memory. {} were given.",
            layout.bytes, region.size()));
  }
  if (reinterpret_cast<const Control*>(region.data())->magic != 0) {
    return MakeError(Reason::kInvalidArgument,
                     "The memory for a channel is in use. Give it a region that is all zero.");
  }
  Format(region.data(), layout);
  return ChannelMemory(region.data(), 0);
}

ChannelMemory::~ChannelMemory() {
  if (base_ != nullptr && owned_bytes_ != 0) munmap(base_, owned_bytes_);
}

bool ChannelMemory::Fits(const Limits& limits) const {
  const Layout needed(limits);
  return control().inbox_capacity >= needed.inbox_capacity &&
         control().out_capacity >= needed.out_capacity &&
         control().index_capacity >= needed.index_capacity;
}

void ChannelMemory::GiveBackPages(bool inbox_empty, bool outbox_empty) {
  const auto give_back = [this](uint64_t begin, uint64_t end) {
    madvise(at(begin), end - begin, MADV_DONTNEED);
  };
  const Control& c = control();
  const uint64_t index_end = c.inbox_offset;
  const uint64_t inbox_end = c.out_offset;
  const uint64_t out_end = c.bytes;
  // The index begins in the control page.
  if (inbox_empty && outbox_empty) {
    give_back(kPageBytes, out_end);
  } else if (inbox_empty) {
    give_back(c.inbox_offset, inbox_end);
  } else if (outbox_empty) {
    give_back(kPageBytes, index_end);
    give_back(c.out_offset, out_end);
  }
}

uint64_t Inbox::end() const {
  const auto unread = control_.receive.Position() - static_cast<uint32_t>(control_.consumed);
  return control_.consumed + unread + control_.inbox_shift;
}

std::span<iovec> Inbox::Free(iovec (&parts)[2]) const {
  const RingView ring = view();
  const uint64_t free = ring.capacity - (ring.end - begin());
  return PartsOf(ring, ring.end, ring.end + std::min<uint64_t>(free, ChannelMemory::kReadBytesMax),
                 parts);
}

std::string_view Inbox::Contiguous(uint64_t begin, uint64_t end, std::string& scratch) const {
  return InOnePiece(view(), begin, end, scratch);
}

uint64_t Inbox::Restart() {
  const uint64_t capacity = control_.inbox_capacity;
  const uint64_t offset = begin() & (capacity - 1);
  const uint64_t left = end() - begin();
  if (offset == 0 || left > kMovedBytesMax || offset + left > capacity) return 0;
  if (left > 0) {
    if (offset < ChannelMemory::kReadBytesMax) return 0;
    std::memcpy(data_, data_ + offset, left);
  }
  const uint64_t growth = capacity - offset;
  control_.inbox_shift += growth;
  return growth;
}

bool Outbox::HasRoom(uint64_t frame_bytes) const {
  return tail() + frame_bytes - control_.settled <= control_.out_capacity &&
         sends() < control_.index_capacity;
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

void Outbox::Commit(uint64_t tag, Send::State state) {
  Send& send = at(control_.accepted);
  send.end = tail() + staged_bytes_;
  send.tag = tag;
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
  const uint64_t start = std::clamp(cancel_from_, control_.first, control_.accepted);
  uint64_t found = start;
  while (found < control_.accepted && !matches(found)) ++found;
  if (found == control_.accepted) {
    found = control_.first;
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
  RestartIfEmpty();
  return true;
}

void Outbox::SkipCancelled() {
  while (!empty() && front().state == Send::State::kCancelled) {
    control_.send.Advance(front().length);
    control_.settled = front().end;
    ++control_.first;
    --cancelled_;
  }
}

std::span<iovec> Outbox::Next(iovec (&parts)[2], bool begun_only) {
  SkipCancelled();
  if (empty()) {
    RestartIfEmpty();
    return {};
  }
  const uint64_t begin = sent();
  uint64_t end = tail();
  if (begun_only) {
    end = begin > front().begin() ? front().end : begin;
  } else if (cancelled_ > 0) {
    uint64_t number = control_.first;
    while (at(number).state != Send::State::kCancelled) ++number;
    end = at(number).begin();
  }
  if (begin == end) return {};
  return PartsOf(View(end), begin + control_.out_shift, end + control_.out_shift, parts);
}

uint64_t Outbox::sent() const {
  const auto unsettled = control_.send.Position() - static_cast<uint32_t>(control_.settled);
  return control_.settled + unsettled;
}

void Outbox::PopFront() {
  if (const uint64_t written = sent(); written < front().end) {
    control_.send.Advance(static_cast<uint32_t>(front().end - written));
  }
  if (front().state == Send::State::kCancelled) --cancelled_;
  control_.settled = front().end;
  ++control_.first;
  RestartIfEmpty();
}

void Outbox::RestartIfEmpty() {
  if (!empty()) return;
  // Both counts go on; only where the next byte and the next entry lie starts again.
  control_.out_shift = -control_.settled;
  control_.index_shift = -control_.accepted;
}

std::string_view Outbox::Contiguous(const Send& send, uint64_t offset, uint64_t count,
                                    std::string& scratch) const {
  const uint64_t begin = send.begin() + offset + control_.out_shift;
  return InOnePiece(View(send.end), begin, begin + count, scratch);
}

}  // namespace deka::ipc
