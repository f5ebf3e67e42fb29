#include "ipc/error.h"

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "absl/strings/cord.h"

namespace deka::ipc {
namespace {

using absl::StatusCode;

struct Row {
  Reason reason;
  std::string_view name;
  StatusCode code;
  int retry_delay_ms;
};

// The code is chosen by what the caller does next:
//
//   INVALID_ARGUMENT     mend the request: as it is it can never succeed
//   FAILED_PRECONDITION  mend the state first: another child, a channel, a program
//   RESOURCE_EXHAUSTED   a limit: wait where a delay is given, else give something back
//   NOT_FOUND            name another one
//   ALREADY_EXISTS       use what is there, or another id, or address
//   OUT_OF_RANGE         go on from another position, the error says which
//   ABORTED              start again one level up: a new call, from the last cursor
//   UNAVAILABLE          the same call again, later
//   UNKNOWN              look what happened before repeating
constexpr Row kTable[] = {
    {Reason::kQueueFull, "QUEUE_FULL", StatusCode::kResourceExhausted, 50},
    {Reason::kChannelClosed, "CHANNEL_CLOSED", StatusCode::kFailedPrecondition, 0},
    {Reason::kChannelFailed, "CHANNEL_FAILED", StatusCode::kFailedPrecondition, 0},
    {Reason::kNoChannel, "NO_CHANNEL", StatusCode::kFailedPrecondition, 0},
    {Reason::kMessageTooLarge, "MESSAGE_TOO_LARGE", StatusCode::kInvalidArgument, 0},
    {Reason::kInvalidJson, "INVALID_JSON", StatusCode::kInvalidArgument, 0},
    {Reason::kEnvelopeMissing, "ENVELOPE_MISSING", StatusCode::kInvalidArgument, 0},
    {Reason::kFrameTruncated, "FRAME_TRUNCATED", StatusCode::kDataLoss, 0},
    {Reason::kReservedMessage, "RESERVED_MESSAGE", StatusCode::kInvalidArgument, 0},
    {Reason::kHandleUnsupported, "HANDLE_UNSUPPORTED", StatusCode::kUnimplemented, 0},

    {Reason::kProgramNotFound, "PROGRAM_NOT_FOUND", StatusCode::kNotFound, 0},
    {Reason::kProgramNotExecutable, "PROGRAM_NOT_EXECUTABLE", StatusCode::kPermissionDenied, 0},
    {Reason::kSpawnFailed, "SPAWN_FAILED", StatusCode::kFailedPrecondition, 0},
    {Reason::kDescriptorsExhausted, "DESCRIPTORS_EXHAUSTED", StatusCode::kResourceExhausted, 1000},
    {Reason::kChildNotFound, "CHILD_NOT_FOUND", StatusCode::kNotFound, 0},
    {Reason::kChildAmbiguous, "CHILD_AMBIGUOUS", StatusCode::kFailedPrecondition, 0},
    {Reason::kChildExited, "CHILD_EXITED", StatusCode::kFailedPrecondition, 0},
    {Reason::kNoProcess, "NO_PROCESS", StatusCode::kFailedPrecondition, 0},
    {Reason::kSignalNotPermitted, "SIGNAL_NOT_PERMITTED", StatusCode::kPermissionDenied, 0},
    // Children live long: waiting does not help, ending one does.
    {Reason::kChildrenLimit, "CHILDREN_LIMIT", StatusCode::kResourceExhausted, 0},
    {Reason::kKeeperGone, "KEEPER_GONE", StatusCode::kFailedPrecondition, 0},

    {Reason::kInvalidArgument, "INVALID_ARGUMENT", StatusCode::kInvalidArgument, 0},
    {Reason::kRequestIdReused, "REQUEST_ID_REUSED", StatusCode::kAlreadyExists, 0},
    {Reason::kPageTokenInvalid, "PAGE_TOKEN_INVALID", StatusCode::kInvalidArgument, 0},
    {Reason::kNotSentCancelled, "NOT_SENT_CANCELLED", StatusCode::kCancelled, 0},
    {Reason::kNotSentDeadline, "NOT_SENT_DEADLINE", StatusCode::kDeadlineExceeded, 0},
    {Reason::kOutcomeUnknown, "OUTCOME_UNKNOWN", StatusCode::kUnknown, 0},

    {Reason::kCursorExpired, "CURSOR_EXPIRED", StatusCode::kOutOfRange, 0},
    {Reason::kCursorOtherEpoch, "CURSOR_OTHER_EPOCH", StatusCode::kOutOfRange, 0},
    // The caller's deadline has nothing to do with it, and the same call again would start at the
    // same old position: a new one from the last cursor is what helps.
    {Reason::kStalled, "STALLED", StatusCode::kAborted, 0},
    {Reason::kTooSlow, "TOO_SLOW", StatusCode::kAborted, 0},
    {Reason::kHeldByObserver, "HELD_BY_OBSERVER", StatusCode::kResourceExhausted, 1000},
    {Reason::kObserversLimit, "OBSERVERS_LIMIT", StatusCode::kResourceExhausted, 1000},

    {Reason::kConnectionsLimit, "CONNECTIONS_LIMIT", StatusCode::kResourceExhausted, 1000},
    {Reason::kAgentStopping, "AGENT_STOPPING", StatusCode::kUnavailable, 1000},
    {Reason::kAgentNotFound, "AGENT_NOT_FOUND", StatusCode::kNotFound, 0},
    // An agent serves there already: use it.
    {Reason::kAddressInUse, "ADDRESS_IN_USE", StatusCode::kAlreadyExists, 0},
    {Reason::kAddressUnsafe, "ADDRESS_UNSAFE", StatusCode::kFailedPrecondition, 0},
    {Reason::kUpgradeRefused, "UPGRADE_REFUSED", StatusCode::kFailedPrecondition, 0},
    {Reason::kConfigInvalid, "CONFIG_INVALID", StatusCode::kInvalidArgument, 0},
    {Reason::kInternal, "INTERNAL", StatusCode::kInternal, 0},
};

constexpr bool RowsStandInOrder() {
  for (size_t i = 0; i < std::size(kTable); ++i) {
    if (kTable[i].reason != static_cast<Reason>(i)) return false;
  }
  return std::size(kTable) == static_cast<size_t>(Reason::kInternal) + 1;
}
static_assert(RowsStandInOrder(), "one row for each reason, in the order of the enumeration");

const Row& RowOf(Reason reason) { return kTable[static_cast<size_t>(reason)]; }

// Payloads of the status: the reason's name under kReasonUrl, each value under kMetadataUrl + key.
constexpr char kReasonUrl[] = "deka.bridge/reason";
constexpr std::string_view kMetadataUrl = "deka.bridge/metadata/";

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

absl::Status MakeError(Reason reason, std::string_view message, const ErrorMetadata& metadata) {
  const Row& row = RowOf(reason);
  absl::Status status(row.code, ToAbsl(message));
  status.SetPayload(kReasonUrl, absl::Cord(ToAbsl(row.name)));
  for (const auto& [key, value] : metadata) {
    status.SetPayload(ToAbsl(std::string(kMetadataUrl) + key), absl::Cord(value));
  }
  return status;
}

std::optional<Reason> ReasonOf(const absl::Status& status) {
  const absl::optional<absl::Cord> name = status.GetPayload(kReasonUrl);
  if (!name.has_value()) return std::nullopt;
  return ReasonFromName(std::string(*name));
}

ErrorMetadata MetadataOf(const absl::Status& status) {
  ErrorMetadata metadata;
  status.ForEachPayload([&metadata](absl::string_view url, const absl::Cord& value) {
    const std::string_view key(url.data(), url.size());
    if (!key.starts_with(kMetadataUrl)) return;
    metadata.emplace_back(key.substr(kMetadataUrl.size()), std::string(value));
  });
  std::sort(metadata.begin(), metadata.end());
  return metadata;
}

std::optional<std::string> MetadataOf(const absl::Status& status, std::string_view key) {
  const absl::optional<absl::Cord> value =
      status.GetPayload(ToAbsl(std::string(kMetadataUrl).append(key)));
  if (!value.has_value()) return std::nullopt;
  return std::string(*value);
}

std::string_view ReasonName(Reason reason) { return RowOf(reason).name; }

std::optional<Reason> ReasonFromName(std::string_view name) {
  const auto row = std::find_if(std::begin(kTable), std::end(kTable),
                                [name](const Row& candidate) { return candidate.name == name; });
  if (row == std::end(kTable)) return std::nullopt;
  return row->reason;
}

absl::StatusCode CodeOf(Reason reason) { return RowOf(reason).code; }

int RetryDelayMs(Reason reason) { return RowOf(reason).retry_delay_ms; }

}  // namespace deka::ipc
