// How messages are written on a channel, and which way a program expects.
//
//   dialect | a line is                              | environment of the child
//   deka    | {"cmd":"NODE_HANDLE","msg":<value>}    | DEKA_IPC_ENABLED=1 DEKA_IPC_FD=<n>
//   node    | <value>                                | NODE_CHANNEL_FD=<n>
//           |                                        | NODE_CHANNEL_SERIALIZATION_MODE=json
//
// A value is any JSON value, its bytes untouched in both directions. In deka's line members may
// stand in any order, with white space and with members that are not known; `type` announces a
// handle.
//
// Thread: any.
#ifndef IPC_DIALECT_H_
#define IPC_DIALECT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace deka::ipc {

enum class Dialect : uint8_t { kDeka, kNode };

// "deka", "node".
std::string_view DialectName(Dialect dialect);
std::optional<Dialect> DialectFromName(std::string_view name);

// Bytes that a line may be longer than the value in it: envelope, white space, unknown members. The
// framer's line limit is message_bytes_max + kEnvelopeBytesMax.
inline constexpr size_t kEnvelopeBytesMax = 4096;

// What a line says.
struct Line {
  // The message: part of the line, without white space around it. Of an internal line the whole
  // line; of one that announces a handle what came with it, empty if nothing did.
  std::string_view value;
  // Of the runtime's own protocol, never a user's message: an object whose string `cmd` begins with
  // NODE_ and is longer, and which in dialect deka is no envelope.
  bool internal = false;
  // The line announces a handle that travels with it: `cmd` is NODE_HANDLE, `type` a string.
  bool handle_announced = false;
};

// A value as a frame: prefix, value, suffix. The suffix ends with the line's '\n'.
struct FrameParts {
  std::string_view prefix;
  std::string_view value;
  std::string_view suffix;

  size_t size() const { return prefix.size() + value.size() + suffix.size(); }
};

// Reads and writes the lines of one dialect. Allocates nothing for a good line.
class Codec {
 public:
  // The limits are those of a value: its bytes, and how deep its arrays and objects are nested.
  Codec(Dialect dialect, size_t message_bytes_max, size_t depth_max)
      : dialect_(dialect), message_bytes_max_(message_bytes_max), depth_max_(depth_max) {}

  // Reads a line without its '\n'. Fails with kInvalidJson (metadata `offset`: the byte of the
  // line), kEnvelopeMissing or kMessageTooLarge (metadata `limit`).
  absl::StatusOr<Line> Decode(std::string_view line) const;

  // Judges a value that is to be sent. Fails with kMessageTooLarge, kInvalidJson, or
  // kReservedMessage: a Node child ends when it is sent NODE_HANDLE, NODE_HANDLE_ACK or
  // NODE_HANDLE_NACK from outside.
  absl::Status Check(std::string_view value) const;

  // `value` has passed Check() and has no line breaks.
  FrameParts Encode(std::string_view value) const { return EncodeAs(dialect_, value); }

  static FrameParts EncodeAs(Dialect dialect, std::string_view value);

  Dialect dialect() const { return dialect_; }

 private:
  absl::Status CheckSize(std::string_view value) const;

  Dialect dialect_;
  size_t message_bytes_max_;
  size_t depth_max_;
};

// The frame, with its '\n', that tells a child that the handle it sent did not arrive. To be sent
// once for each handle announced and never otherwise: Node ends on one that it does not expect.
std::string_view HandleNack();

struct DialectChoice {
  Dialect dialect = Dialect::kDeka;
  std::string reason;  // a sentence: "/usr/bin/node is node"
};

// The dialect that `program` expects: node if it is node, nodejs, bun or deno, found as exec finds
// it (`path` is the child's PATH; relative names start at `cwd`), through symbolic links and #!
// lines (with env and env -S too), else deka. Of a shell or another program that starts programs
// the reason says which dialect to give. Reads files, of each the first line.
DialectChoice ChooseDialect(std::string_view program, std::string_view path, std::string_view cwd);

// `base` ("NAME=value" each) with the variables of a channel on descriptor `fd`, and without those
// of any other.
std::vector<std::string> ChannelEnvironment(const std::vector<std::string>& base, Dialect dialect,
                                            int fd);

// `base` without the variables of any channel: for a child that has none.
std::vector<std::string> EnvironmentWithoutChannel(const std::vector<std::string>& base);

}  // namespace deka::ipc

#endif  // IPC_DIALECT_H_
