// One encoded ObserveResponse in pieces: bytes of its own, and bytes of blocks that it shares with
// other observers.
//
//   own:    [room for a head] aaaa bbbb
//   pieces: own 0..4 | block 7, 300 bytes | own 4..8
//
// Thread: one at a time. What is shared is never written again, so its owner may be released by any
// thread.
#ifndef AGENT_RESPONSE_H_
#define AGENT_RESPONSE_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "google/protobuf/message_lite.h"

namespace deka::agent {

class Response {
 public:
  // What Prepend may put before everything, in all.
  static constexpr size_t kHeadBytesMax = 32;

  struct Piece {
    std::shared_ptr<const void> owner = nullptr;  // of `shared`; null: the bytes are in own()
    const char* shared = nullptr;
    size_t begin = 0;  // in own()
    size_t bytes = 0;
  };

  // Nothing; the capacity stays.
  void Clear() {
    own_.resize(kHeadBytesMax);
    begin_ = kHeadBytesMax;
    pieces_.clear();
    bytes_ = 0;
  }

  void Set(const google::protobuf::MessageLite& message) {
    Clear();
    message.AppendToString(&own_);
    AddOwn(own_.size() - kHeadBytesMax);
  }

  void Append(std::string_view bytes) {
    own_.append(bytes);
    AddOwn(bytes.size());
  }

  void Share(std::shared_ptr<const void> owner, std::string_view bytes) {
    pieces_.push_back({.owner = std::move(owner), .shared = bytes.data(), .bytes = bytes.size()});
    bytes_ += bytes.size();
  }

  // Puts bytes before all others.
  void Prepend(std::string_view head) {
    begin_ -= head.size();
    own_.replace(begin_, head.size(), head);
    if (!pieces_.empty() && pieces_.front().owner == nullptr) {
      pieces_.front().begin = begin_;
      pieces_.front().bytes += head.size();
    } else {
      pieces_.insert(pieces_.begin(), {.begin = begin_, .bytes = head.size()});
    }
    bytes_ += head.size();
  }

  size_t bytes() const { return bytes_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  std::string& own() { return own_; }

  // In one piece.
  std::string ToString() const {
    std::string all;
    all.reserve(bytes_);
    for (const Piece& piece : pieces_) {
      all.append(piece.owner == nullptr ? own_.data() + piece.begin : piece.shared, piece.bytes);
    }
    return all;
  }

 private:
  void AddOwn(size_t bytes) {
    if (bytes == 0) return;
    if (!pieces_.empty() && pieces_.back().owner == nullptr) {
      pieces_.back().bytes += bytes;
    } else {
      pieces_.push_back({.begin = own_.size() - bytes, .bytes = bytes});
    }
    bytes_ += bytes;
  }

  std::string own_ = std::string(kHeadBytesMax, '\0');
  size_t begin_ = kHeadBytesMax;  // of what is used of own_
  std::vector<Piece> pieces_;
  size_t bytes_ = 0;
};

}  // namespace deka::agent

#endif  // AGENT_RESPONSE_H_
