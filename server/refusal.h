// A connection of HTTP/2 that is not served: each call on it is answered with one error.
//
//                                   SETTINGS ->
//   <- preface, SETTINGS, HEADERS of a call
//                                   HEADERS: the error, which ends the call ->
//   <- HEADERS of a further call
//                                   HEADERS ->
//                                   GOAWAY: make the next one elsewhere ->
//   <- HEADERS of a call that was on its way
//                                   HEADERS ->
//   the client closes
//
// A gRPC client whose connection is refused in any other way does not learn why. If it ends before
// SETTINGS the client reports how it ended; if GOAWAY names no call, the client makes the same call
// on a new connection at once, and again and again; if the connection ends while the client writes,
// what it has not read is lost.
//
// Code without IO: who owns the socket writes what it is given, in this order, and closes the
// writing side when ended() is true. Thread: one at a time.
#ifndef SERVER_REFUSAL_H_
#define SERVER_REFUSAL_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace deka::server {

class Refusal {
 public:
  // `why` is no OK.
  explicit Refusal(const absl::Status& why);

  // What is written first.
  static std::string Begin();

  // What is written upon these bytes of the client, however they are cut: an answer to each call. A
  // client that speaks another protocol gets End().
  std::string Take(std::string_view bytes);

  // What asks the client to leave. Calls that it makes nevertheless are answered. One that has not
  // begun HTTP/2 gets End().
  std::string AskToLeave();

  // What is written when no call is answered any more. It ends with the error's message as text.
  std::string End();

  // Nothing more is written.
  bool ended() const { return ended_; }

 private:
  static constexpr size_t kFrameHeaderBytes = 9;

  std::string answer_;   // the header block that ends a call
  std::string message_;  // of the error
  size_t preface_ = 0;   // how much of it has come
  std::string header_;   // of the frame that comes, as far as it has
  size_t payload_ = 0;   // of a frame: what is still to come
  uint32_t last_stream_ = 0;
  bool ended_ = false;
};

}  // namespace deka::server

#endif  // SERVER_REFUSAL_H_
