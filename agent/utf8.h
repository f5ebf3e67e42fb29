// Text from outside made fit for protobuf's `string`, which holds UTF-8 only.
#ifndef AGENT_UTF8_H_
#define AGENT_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace deka::agent {

// Well-formed UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing past U+10FFFF.
bool IsUtf8(std::string_view bytes);

// `bytes` with U+FFFD for each byte that is part of no character, and at most `bytes_max` bytes of
// the result, cut between two characters.
std::string ToUtf8(std::string_view bytes, size_t bytes_max);

// The longest beginning of `text`, which is UTF-8, that ends between two characters and has at most
// `bytes_max` bytes.
std::string_view Utf8Prefix(std::string_view text, size_t bytes_max);

}  // namespace deka::agent

#endif  // AGENT_UTF8_H_
