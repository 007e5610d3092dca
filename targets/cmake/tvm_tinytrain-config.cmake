# Archives of training libraries in a CMake project:
#
#   find_package(tvm_tinytrain REQUIRED)
#   tinytrain_add_library(digits ARCHIVE digits.tar)            # a static library with its headers
#   target_link_libraries(my_program PRIVATE digits)
#   tinytrain_add_firmware(firmware LIBRARY digits BOARD mps2-an500)   # a program that a Session can drive
#
# Where the package is:  python -m tvm_tinytrain.targets --cmake-dir   (pass it as -Dtvm_tinytrain_DIR=...)
# Toolchain files lie beside this one: arm-none-eabi.cmake, aarch64-linux-gnu.cmake.
cmake_minimum_required(VERSION 3.19)

get_filename_component(TINYTRAIN_CMAKE_DIR "${CMAKE_CURRENT_LIST_DIR}" ABSOLUTE)
get_filename_component(TINYTRAIN_RUNTIME_DIR "${TINYTRAIN_CMAKE_DIR}/../runtime" ABSOLUTE)

# tinytrain_add_library(<name> ARCHIVE <file> [BOARD <board>])
# Properties of the target: TINYTRAIN_LIBRARY (its name in C), TINYTRAIN_ARENA_BYTES.
function(tinytrain_add_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "ARCHIVE;BOARD" "")
  if(NOT arg_ARCHIVE)
    message(FATAL_ERROR "tinytrain_add_library(${name}): no ARCHIVE; pass the file that module.export() wrote")
  endif()
  get_filename_component(archive "${arg_ARCHIVE}" ABSOLUTE)
  if(NOT EXISTS "${archive}")
    message(FATAL_ERROR "tinytrain_add_library(${name}): no file ${archive}; write it with module.export()")
  endif()
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/${name}.tinytrain")
  file(REMOVE_RECURSE "${folder}")
  file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${folder}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${archive}")
  if(NOT EXISTS "${folder}/metadata.json")
    message(FATAL_ERROR "tinytrain_add_library(${name}): ${archive} has no metadata.json; export the module again")
  endif()
  file(READ "${folder}/metadata.json" metadata)
  string(JSON library GET "${metadata}" name)
  string(JSON arena_bytes GET "${metadata}" memory arena_bytes)
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.c")
  file(GLOB objects CONFIGURE_DEPENDS "${folder}/*.o")
  add_library(${name} STATIC ${sources} ${objects})
  if(objects)
    string(JSON triple GET "${metadata}" kernels triple)
    execute_process(COMMAND ${CMAKE_C_COMPILER} -dumpmachine OUTPUT_VARIABLE machine OUTPUT_STRIP_TRAILING_WHITESPACE)
    string(REGEX REPLACE "-.*" "" wanted "${triple}")
    if(NOT machine MATCHES "^${wanted}" OR (triple MATCHES "linux" AND NOT machine MATCHES "linux"))
      message(FATAL_ERROR "tinytrain_add_library(${name}): ${archive} has kernels for ${triple}, the compiler makes ${machine}; build the module for this machine")
    endif()
    set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  endif()
  target_include_directories(${name} PUBLIC "${folder}")
  target_compile_options(${name} PRIVATE -O3)
  set_target_properties(${name} PROPERTIES
    C_STANDARD 99 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF
    TINYTRAIN_LIBRARY "${library}" TINYTRAIN_ARENA_BYTES "${arena_bytes}")
  find_library(TINYTRAIN_LIBM m)
  if(TINYTRAIN_LIBM AND NOT CMAKE_SYSTEM_NAME STREQUAL "Generic")
    target_link_libraries(${name} PUBLIC ${TINYTRAIN_LIBM})
  endif()
endfunction()

# tinytrain_add_firmware(<name> LIBRARY <target> BOARD <board>): the program with the C runtime.
function(tinytrain_add_firmware name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LIBRARY;BOARD" "")
  file(GLOB known RELATIVE "${TINYTRAIN_CMAKE_DIR}/boards" "${TINYTRAIN_CMAKE_DIR}/boards/*.cmake")
  list(TRANSFORM known REPLACE "\\.cmake$" "")
  if(NOT "${arg_BOARD}" IN_LIST known)
    list(JOIN known ", " known)
    message(FATAL_ERROR "tinytrain_add_firmware(${name}): board \"${arg_BOARD}\" is not known; choose one of ${known}")
  endif()
  include("${TINYTRAIN_CMAKE_DIR}/boards/${arg_BOARD}.cmake")
  get_target_property(library ${arg_LIBRARY} TINYTRAIN_LIBRARY)
  get_target_property(arena_bytes ${arg_LIBRARY} TINYTRAIN_ARENA_BYTES)
  math(EXPR linked "(${arena_bytes} + 3) / 4 * 4 + ${TINYTRAIN_BOARD_ARENA_GUARD}")

  set(folder "${CMAKE_CURRENT_BINARY_DIR}/${name}.tinytrain")
  file(WRITE "${folder}/tt_config.h" "${TINYTRAIN_BOARD_CONFIG}#define TT_LINKED_ARENA_BYTES ${linked}\n")
  file(WRITE "${folder}/tt_active.c" "#include \"tt_${library}.h\"\n
extern const tt_library *const tt_active_library;
const tt_library *const tt_active_library = &tt_${library}_library;\n")

  list(TRANSFORM TINYTRAIN_BOARD_SOURCES PREPEND "${TINYTRAIN_RUNTIME_DIR}/")
  add_executable(${name} ${TINYTRAIN_BOARD_SOURCES} "${folder}/tt_active.c")
  set_target_properties(${name} PROPERTIES
    C_STANDARD 99 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF SUFFIX ".elf")
  target_include_directories(${name} PRIVATE "${TINYTRAIN_RUNTIME_DIR}/include")
  target_compile_options(${name} PRIVATE -O3 ${TINYTRAIN_BOARD_FLAGS} -ffunction-sections -fdata-sections
    -Wall -Wextra -Wpedantic -include "${folder}/tt_config.h")
  target_compile_options(${arg_LIBRARY} PRIVATE ${TINYTRAIN_BOARD_FLAGS} -ffunction-sections -fdata-sections)
  target_link_options(${name} PRIVATE ${TINYTRAIN_BOARD_FLAGS})
  target_link_libraries(${name} PRIVATE ${arg_LIBRARY})
  if(DEFINED TINYTRAIN_BOARD_LINKER_SCRIPT)
    file(WRITE "${folder}/board.ld" "${TINYTRAIN_BOARD_LINKER_SCRIPT}")
    target_link_options(${name} PRIVATE -nostartfiles -nostdlib "-T${folder}/board.ld" -Wl,--gc-sections
      -Wl,--no-warn-rwx-segments "-Wl,-Map=${folder}/${name}.map")
    target_link_libraries(${name} PRIVATE -Wl,--start-group -lm -lc -lgcc -Wl,--end-group)
  else()
    target_link_options(${name} PRIVATE -pthread -static)
    target_link_libraries(${name} PRIVATE m)
  endif()
endfunction()
