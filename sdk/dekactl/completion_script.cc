#include "sdk/dekactl/completion_script.h"

#include <cctype>
#include <string_view>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

// Where both shells are one: given the words before the one to complete, prints what it can be, a
// candidate a line; @DIR, @FILE and @PROGRAM stand for what the shell itself knows.
//
// {0} commands, {1} what an option takes, {2} what a command's arguments take, {3} its options.
constexpr std::string_view kCandidates = R"(
_dekactl_takes() {{
  case "$1 $2" in
{1}  esac
}}

_dekactl_argument() {{
  case "$1 $2" in
{2}  esac
}}

_dekactl_options() {{
  case "$1" in
{3}  esac
}}

_dekactl_candidates() {{
  local program=$1 command='' pending='' target='' only_arguments='' count=0 word kind
  shift
  for word in "$@"; do
    if [[ -n $pending ]]; then
      [[ $pending != TARGET ]] || target=$word
      pending=''
    elif [[ $word == -- ]]; then
      only_arguments=yes
    elif [[ $word == -* && -z $only_arguments ]]; then
      pending=$(_dekactl_takes "$command" "$word")
    elif [[ -z $command ]]; then
      command=$word
    else
      count=$((count + 1))
    fi
  done
  kind=$pending
  if [[ -z $pending ]]; then
    if [[ -z $command ]]; then
      kind='{0}'
    else
      kind=$(_dekactl_argument "$command" "$count")
    fi
    [[ -n $only_arguments ]] || _dekactl_options "$command" | tr ' ' '\n'
  fi
  case $kind in
    CHILD) "$program" ${{target:+--target="$target"}} ps --names 2>/dev/null ;;
    DIR | FILE | PROGRAM) printf '@%s\n' "$kind" ;;
    TARGET) printf 'unix:\n' ;;
    ANY | '') ;;
    *) printf '%s\n' "$kind" | tr ' ' '\n' ;;
  esac
}}
)";

constexpr std::string_view kBash = R"(
_dekactl() {
  local line=${COMP_LINE:0:COMP_POINT} words current candidate IFS=$' \t\n'
  COMPREPLY=()
  # Not COMP_WORDS, which are cut at each colon.
  read -ra words <<<"$line"
  [[ $line != *[[:space:]] ]] || words+=('')
  current=${words[${#words[@]} - 1]}
  unset "words[${#words[@]} - 1]"
  while IFS= read -r candidate; do
    case $candidate in
      @DIR) compopt -o filenames && COMPREPLY+=($(compgen -d -- "$current")) ;;
      @FILE) compopt -o filenames && COMPREPLY+=($(compgen -f -- "$current")) ;;
      @PROGRAM) compopt -o filenames && COMPREPLY+=($(compgen -c -- "$current") $(compgen -f -- "$current")) ;;
      -*) [[ $current != -* || $candidate != "$current"* ]] || COMPREPLY+=("$candidate") ;;
      *) [[ $candidate != "$current"* ]] || COMPREPLY+=("$candidate") ;;
    esac
  done < <(_dekactl_candidates "${words[@]}")
  # Bash replaces only what is behind the last colon.
  if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*:}"}"}")
  fi
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *: ]]; then
    compopt -o nospace
  fi
}
complete -F _dekactl dekactl
)";

constexpr std::string_view kZsh = R"(
_dekactl() {
  local current=${words[CURRENT]} candidate
  local -a before
  before=("${(@Q)words[1,CURRENT-1]}")
  while IFS= read -r candidate; do
    case $candidate in
      @DIR) _files -/ ;;
      @FILE) _files ;;
      @PROGRAM) _command_names -e; _files ;;
      -*) [[ $current != -* ]] || compadd -- "$candidate" ;;
      *:) compadd -S '' -- "$candidate" ;;
      *) compadd -- "$candidate" ;;
    esac
  done < <(_dekactl_candidates "${before[@]}")
}
compdef _dekactl dekactl
)";

// What stands behind an option or argument of this type name.
std::string Takes(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  if (type == "SIGNAME") {
    return fmt::format("{}", fmt::join(SignalWords(), " "));
  }
  if (type == "CHILD" || type == "DIR" || type == "FILE" || type == "PROGRAM" || type == "TARGET") {
    return type;
  }
  if (type.find('|') == std::string::npos) {
    return "ANY";
  }
  std::string words;
  for (const char letter : type) {
    if (letter != '|' && std::isupper(static_cast<unsigned char>(letter)) == 0) {
      words += letter;
    } else if (letter == '|' && !words.empty() && words.back() != ' ') {
      words += ' ';
    }
  }
  if (words.ends_with(' ')) {
    words.pop_back();
  }
  return words;
}

bool TakesMany(const CLI::Option& option) { return option.get_items_expected_max() > 1; }

// The parts of kCandidates for one command; "" is dekactl itself.
struct Parts {
  std::string takes;
  std::string arguments;
  std::string options;

  void Add(const CLI::App& command, const std::string& name) {
    std::vector<std::string> flags;
    int place = 0;
    for (const CLI::Option* option : command.get_options([](const CLI::Option*) { return true; })) {
      if (option->get_positional()) {
        // A `*` of the pattern: all further ones.
        arguments +=
            fmt::format("    '{} '{}) echo '{}' ;;\n", name,
                        TakesMany(*option) ? "*" : std::to_string(place++), Takes(*option));
        continue;
      }
      for (const std::string& flag : option->get_lnames()) {
        flags.push_back("--" + flag);
        if (option->get_items_expected_max() != 0) {
          takes += fmt::format("    '{} --{}') echo '{}' ;;\n", name, flag, Takes(*option));
        }
      }
    }
    options += fmt::format("    '{}') echo '{}' ;;\n", name, fmt::join(flags, " "));
  }
};

std::string Candidates(const CLI::App& app) {
  std::vector<std::string> names;
  Parts parts;
  parts.Add(app, "");
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
    parts.Add(*command, command->get_name());
  }
  return fmt::format(fmt::runtime(kCandidates), fmt::join(names, " "), parts.takes, parts.arguments,
                     parts.options);
}

}  // namespace

std::string BashCompletion(const CLI::App& app) {
  return fmt::format("# Completion of dekactl for bash: source <(dekactl completion bash)\n{}{}",
                     Candidates(app), kBash);
}

std::string ZshCompletion(const CLI::App& app) {
  return fmt::format("#compdef dekactl\n# For zsh: source <(dekactl completion zsh)\n{}{}",
                     Candidates(app), kZsh);
}

}  // namespace deka::dekactl
