// What UTF-8 is.
#ifndef SDK_CPP_UTF8_H_
#define SDK_CPP_UTF8_H_

#include <cstddef>
#include <optional>
#include <string_view>

namespace deka {

// The length of the UTF-8 character that `text` begins with; 0 if it begins with none: a stray or
// missing byte, an overlong form, a surrogate, beyond U+10FFFF, or nothing at all.
size_t Utf8CharacterSize(std::string_view text);

// The offset of the first byte of `text` that is not UTF-8.
std::optional<size_t> FirstBadByte(std::string_view text);

}  // namespace deka

#endif  // SDK_CPP_UTF8_H_
