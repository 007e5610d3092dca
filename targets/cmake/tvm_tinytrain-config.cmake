# Archives of training libraries in a CMake project:
#
#   find_package(tvm_tinytrain REQUIRED)
#   tinytrain_add_library(digits ARCHIVE digits.tar)            # a static library with its headers
#   target_link_libraries(my_program PRIVATE digits)
#   tinytrain_add_library(digits ARCHIVE digits.tar BOARD mps2-an500)   # the same, compiled for a board's core
#   tinytrain_add_firmware(firmware LIBRARY digits BOARD mps2-an500)   # a program that a Session can drive
#
# Where the package is:  python -m tvm_tinytrain.targets --cmake-dir   (pass it as -Dtvm_tinytrain_DIR=...)
# Toolchain files lie beside this one: arm-none-eabi.cmake, aarch64-linux-gnu.cmake.
cmake_minimum_required(VERSION 3.19)

get_filename_component(TINYTRAIN_CMAKE_DIR "${CMAKE_CURRENT_LIST_DIR}" ABSOLUTE)
get_filename_component(TINYTRAIN_RUNTIME_DIR "${TINYTRAIN_CMAKE_DIR}/../runtime" ABSOLUTE)

# Reads boards/<board>.cmake, whose variables TINYTRAIN_BOARD_... the calling function then has.
macro(_tinytrain_board what board)
  file(GLOB known RELATIVE "${TINYTRAIN_CMAKE_DIR}/boards" "${TINYTRAIN_CMAKE_DIR}/boards/*.cmake")
  list(TRANSFORM known REPLACE "\\.cmake$" "")
  if(NOT "${board}" IN_LIST known)
    list(JOIN known ", " known)
    message(FATAL_ERROR "${what}: board \"${board}\" is not known; choose one of ${known}")
  endif()
  include("${TINYTRAIN_CMAKE_DIR}/boards/${board}.cmake")
endmacro()

# An object file is for one core: `core`, or "" for a library without one.
function(_tinytrain_check_object what core)
  if(core AND NOT core IN_LIST TINYTRAIN_BOARD_OBJECTS)
    list(JOIN TINYTRAIN_BOARD_OBJECTS ", " allowed)
    message(FATAL_ERROR "${what}: its archive has kernels for ${core}, the board runs those for ${allowed}; build the module for the board")
  endif()
endfunction()

# A tar that was cut or altered unpacks all the same: its SHA256SUMS says what it held.
function(_tinytrain_check_sums what folder)
  foreach(file SHA256SUMS metadata.json)
    if(NOT EXISTS "${folder}/${file}")
      message(FATAL_ERROR "${what} has no ${file}; export the module again")
    endif()
  endforeach()
  file(STRINGS "${folder}/SHA256SUMS" lines)
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^([^ ]*)  (.*)$" "\\1" digest "${line}")
    string(REGEX REPLACE "^([^ ]*)  (.*)$" "\\2" file "${line}")
    if(NOT EXISTS "${folder}/${file}")
      message(FATAL_ERROR "${what} has no ${file}; export the module again")
    endif()
    file(SHA256 "${folder}/${file}" found)
    if(NOT found STREQUAL digest)
      message(FATAL_ERROR "${what}: ${file} was altered; export the module again")
    endif()
  endforeach()
endfunction()

# Sets `out` to the memory of the board's for an arena: the first one, if it has room for what else lies there (and for a pool of
# `cache` bytes), else the first that has room for the arena. Where none has, the linker says by how much.
function(_tinytrain_arena_memory out arena cache)
  list(GET TINYTRAIN_BOARD_ARENA_MEMORIES 0 found)
  list(GET TINYTRAIN_BOARD_ARENA_MEMORY_BYTES 0 room)
  math(EXPR needed "${arena} + ${cache} + ${TINYTRAIN_BOARD_BESIDE_ARENA}")
  if(needed GREATER room)
    foreach(memory bytes IN ZIP_LISTS TINYTRAIN_BOARD_ARENA_MEMORIES TINYTRAIN_BOARD_ARENA_MEMORY_BYTES)
      if(NOT memory STREQUAL found AND NOT bytes LESS arena)
        set(found ${memory})
        break()
      endif()
    endforeach()
  endif()
  set(${out} ${found} PARENT_SCOPE)
endfunction()

# tinytrain_add_library(<name> ARCHIVE <file> [BOARD <board>])
# With BOARD it is compiled for the board's core; without, for what the compiler and CMAKE_C_FLAGS say.
# Properties of the target: TINYTRAIN_LIBRARY (its name in C), TINYTRAIN_ARENA_BYTES, TINYTRAIN_CACHE_BYTES (of its pool, or 0),
# TINYTRAIN_OBJECT_CORE, TINYTRAIN_BOARD.
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
  _tinytrain_check_sums("tinytrain_add_library(${name}): ${archive}" "${folder}")
  file(READ "${folder}/metadata.json" metadata)
  string(JSON library GET "${metadata}" name)
  string(JSON arena_bytes GET "${metadata}" memory arena_bytes)
  string(JSON cache_bytes ERROR_VARIABLE no_pool GET "${metadata}" training pools cache bytes)
  if(no_pool)
    set(cache_bytes 0)
  endif()
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.c")
  file(GLOB objects CONFIGURE_DEPENDS "${folder}/*.o")
  add_library(${name} STATIC ${sources} ${objects})
  set(object_core "")
  if(objects)
    string(JSON object_core GET "${metadata}" kernels mcpu)
    string(JSON triple GET "${metadata}" kernels triple)
    execute_process(COMMAND ${CMAKE_C_COMPILER} -dumpmachine OUTPUT_VARIABLE machine OUTPUT_STRIP_TRAILING_WHITESPACE)
    string(REGEX REPLACE "-.*" "" wanted "${triple}")
    if(NOT machine MATCHES "^${wanted}" OR (triple MATCHES "linux" AND NOT machine MATCHES "linux"))
      message(FATAL_ERROR "tinytrain_add_library(${name}): ${archive} has kernels for ${triple}, the compiler makes ${machine}; build the module for this machine")
    endif()
    set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  endif()
  target_include_directories(${name} PUBLIC "${folder}")
  target_compile_options(${name} PRIVATE -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math)
  set_target_properties(${name} PROPERTIES
    C_STANDARD 99 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF
    TINYTRAIN_LIBRARY "${library}" TINYTRAIN_ARENA_BYTES "${arena_bytes}"
    TINYTRAIN_CACHE_BYTES "${cache_bytes}"
    TINYTRAIN_OBJECT_CORE "${object_core}" TINYTRAIN_BOARD "${arg_BOARD}")
  if(arg_BOARD)
    _tinytrain_board("tinytrain_add_library(${name})" "${arg_BOARD}")
    _tinytrain_check_object("tinytrain_add_library(${name})" "${object_core}")
    target_compile_options(${name} PRIVATE ${TINYTRAIN_BOARD_FLAGS} -ffunction-sections -fdata-sections)
  endif()
  find_library(TINYTRAIN_LIBM m)
  if(TINYTRAIN_LIBM AND NOT CMAKE_SYSTEM_NAME STREQUAL "Generic")
    target_link_libraries(${name} PUBLIC ${TINYTRAIN_LIBM})
  endif()
endfunction()

# tinytrain_add_firmware(<name> LIBRARY <target> BOARD <board>): the program with the C runtime.
function(tinytrain_add_firmware name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LIBRARY;BOARD" "")
  _tinytrain_board("tinytrain_add_firmware(${name})" "${arg_BOARD}")
  get_target_property(library ${arg_LIBRARY} TINYTRAIN_LIBRARY)
  get_target_property(object_core ${arg_LIBRARY} TINYTRAIN_OBJECT_CORE)
  get_target_property(library_board ${arg_LIBRARY} TINYTRAIN_BOARD)
  _tinytrain_check_object("tinytrain_add_firmware(${name})" "${object_core}")
  if(library_board AND NOT library_board STREQUAL arg_BOARD)
    message(FATAL_ERROR "tinytrain_add_firmware(${name}): ${arg_LIBRARY} is compiled for ${library_board}; give both the same BOARD")
  endif()
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
  if(NOT library_board)
    target_compile_options(${arg_LIBRARY} PRIVATE ${TINYTRAIN_BOARD_FLAGS} -ffunction-sections -fdata-sections)
  endif()
  target_link_options(${name} PRIVATE ${TINYTRAIN_BOARD_FLAGS})
  target_link_libraries(${name} PRIVATE ${arg_LIBRARY})
  if(DEFINED TINYTRAIN_BOARD_LINKER_SCRIPT)
    get_target_property(cache_bytes ${arg_LIBRARY} TINYTRAIN_CACHE_BYTES)
    _tinytrain_arena_memory(arena ${linked} ${cache_bytes})
    string(CONFIGURE "${TINYTRAIN_BOARD_LINKER_SCRIPT}" script @ONLY)
    file(WRITE "${folder}/board.ld" "${script}")
    target_link_options(${name} PRIVATE -nostartfiles -nostdlib "-T${folder}/board.ld" -Wl,--gc-sections
      -Wl,--no-warn-rwx-segments -Xlinker "-Map=${folder}/${name}.map")
    target_link_libraries(${name} PRIVATE -Wl,--start-group -lm -lc -lgcc -Wl,--end-group)
  else()
    target_link_options(${name} PRIVATE -pthread -static)
    target_link_libraries(${name} PRIVATE m)
  endif()
endfunction()
