#include "server/refusal.h"

#include <fmt/format.h>

#include <algorithm>

#include "absl/strings/escaping.h"
#include "server/status.h"

namespace deka::server {

namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Frames.
constexpr char kHeaders = 1, kSettings = 4, kGoAway = 7;
constexpr char kEndStream = 1, kEndHeaders = 4;
constexpr uint32_t kNoError = 0;
constexpr uint32_t kStreamMask = 0x7FFFFFFF;
constexpr uint32_t kStreamMax = kStreamMask;

std::string Uint32(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

uint32_t ToUint32(std::string_view bytes) {
  uint32_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<unsigned char>(byte);
  return value;
}

std::string Frame(char type, char flags, uint32_t stream, std::string_view payload) {
  std::string frame = Uint32(static_cast<uint32_t>(payload.size())).substr(1);
  frame += {type, flags};
  return frame.append(Uint32(stream)).append(payload);
}

// HPACK: a string as it is.
std::string Literal(std::string_view text) {
  constexpr size_t kPrefixMax = 127;
  std::string literal;
  if (text.size() < kPrefixMax) {
    literal += static_cast<char>(text.size());
  } else {
    literal += static_cast<char>(kPrefixMax);
    size_t left = text.size() - kPrefixMax;
    for (; left >= 128; left /= 128) literal += static_cast<char>(128 + left % 128);
    literal += static_cast<char>(left);
  }
  return literal.append(text);
}

// HPACK: a field that no table remembers.
std::string Field(std::string_view name, std::string_view value) {
  return std::string(1, '\0') + Literal(name) + Literal(value);
}

// What gRPC writes for a character that a header's value may not hold.
std::string PercentEncoded(std::string_view text) {
  std::string encoded;
  for (const char c : text) {
    if (c >= ' ' && c <= '~' && c != '%') {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

}  // namespace

Refusal::Refusal(const absl::Status& why) {
  constexpr char kStatus200 = '\x88';  // of HPACK's own table
  const google::rpc::Status status = ToRpcStatus(why);
  message_ = status.message();
  answer_ = kStatus200 + Field("content-type", "application/grpc") +
            Field("grpc-status", fmt::format("{}", status.code())) +
            Field("grpc-message", PercentEncoded(message_)) +
            Field("grpc-status-details-bin", absl::Base64Escape(status.SerializeAsString()));
}

std::string Refusal::Begin() { return Frame(kSettings, 0, 0, ""); }

std::string Refusal::Take(std::string_view bytes) {
  std::string answers;
  if (ended_) return answers;
  while (!bytes.empty()) {
    if (preface_ < kPreface.size()) {
      const size_t size = std::min(bytes.size(), kPreface.size() - preface_);
      if (bytes.substr(0, size) != kPreface.substr(preface_, size)) return End();
      preface_ += size;
      bytes.remove_prefix(size);
      continue;
    }
    if (payload_ > 0) {
      const size_t size = std::min(bytes.size(), payload_);
      payload_ -= size;
      bytes.remove_prefix(size);
      continue;
    }
    const size_t size = std::min(bytes.size(), kFrameHeaderBytes - header_.size());
    header_ += bytes.substr(0, size);
    bytes.remove_prefix(size);
    if (header_.size() < kFrameHeaderBytes) continue;
    const std::string_view header = header_;
    payload_ = ToUint32(header.substr(0, 3));
    const uint32_t stream = ToUint32(header.substr(5)) & kStreamMask;
    // Trailers of a client come on a stream that is answered already.
    if (header[3] == kHeaders && stream > last_stream_) {
      last_stream_ = stream;
      answers += Frame(kHeaders, kEndStream | kEndHeaders, stream, answer_);
    }
    header_.clear();
  }
  return answers;
}

std::string Refusal::AskToLeave() {
  if (preface_ < kPreface.size()) return End();
  if (ended_) return "";
  return Frame(kGoAway, 0, 0, Uint32(kStreamMax) + Uint32(kNoError) + message_);
}

std::string Refusal::End() {
  if (ended_) return "";
  ended_ = true;
  return Frame(kGoAway, 0, 0, Uint32(last_stream_) + Uint32(kNoError) + message_);
}

}  // namespace deka::server
