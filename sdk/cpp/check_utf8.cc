#include "sdk/cpp/check_utf8.h"

#include <optional>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "google/protobuf/descriptor.h"
#include "ipc/utf8.h"
#include "sdk/cpp/rpc_error.h"

namespace deka {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Where the first bad field is, "spec.args[2] is not UTF-8 at byte 17"; empty if there is none.
std::string FindBad(const Message& message, const std::string& path) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool text = field->type() == FieldDescriptor::TYPE_STRING;
    if (!text && field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      continue;
    }
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      std::string name = path + field->name();
      if (field->is_repeated()) {
        name += fmt::format("[{}]", i);
      }
      std::string bad;
      if (!text) {
        bad = FindBad(field->is_repeated() ? reflection.GetRepeatedMessage(message, field, i)
                                           : reflection.GetMessage(message, field),
                      name + ".");
      } else {
        std::string scratch;
        const std::string& value =
            field->is_repeated()
                ? reflection.GetRepeatedStringReference(message, field, i, &scratch)
                : reflection.GetStringReference(message, field, &scratch);
        if (const std::optional<size_t> offset = ipc::FirstBadByte(value)) {
          bad = fmt::format("{} is not UTF-8 at byte {}", name, *offset);
        }
      }
      if (!bad.empty()) {
        return bad;
      }
    }
  }
  return "";
}

}  // namespace

absl::Status CheckUtf8(const Message& message) {
  const std::string bad = FindBad(message, "");
  if (bad.empty()) {
    return absl::OkStatus();
  }
  return ClientError(absl::StatusCode::kInvalidArgument, "INVALID_ARGUMENT",
                     bad + "; the API carries text in UTF-8 only");
}

}  // namespace deka
