// Runs one compiled model once: loads the library and its parameters, feeds raw tensors, writes raw
// tensors. It needs libtvm_runtime and libtvm_ffi only, and serves to run aarch64 code in an emulator.
//
// usage: runner LIBRARY PARAMETERS FOLDER
//
// FOLDER/inputs.txt has a line for each input, FOLDER/input<N>.bin its bytes:
//   CODE BITS RANK DIM...        CODE and BITS as DLPack has them
// Outputs go to FOLDER/outputs.txt and FOLDER/output<N>.bin in the same form.

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

namespace {

constexpr int kPooledAllocator = 2;
constexpr std::size_t kAlignment = 64;

struct HostMemory {
  void AllocData(DLTensor* tensor) {
    const std::size_t bytes = ffi::GetDataSize(*tensor);
    tensor->data = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

std::string DataFile(const std::string& folder, const std::string& kind, std::size_t index) {
  return folder + "/" + kind + std::to_string(index) + ".bin";
}

ffi::Tensor ReadInput(const std::string& line, std::size_t index, const std::string& folder) {
  std::istringstream words(line);
  int code = 0, bits = 0, rank = 0;
  words >> code >> bits >> rank;
  std::vector<int64_t> dims(rank);
  for (int64_t& dim : dims) words >> dim;
  const DLDataType dtype{static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(
      HostMemory(), ffi::ShapeView(dims.data(), dims.size()), dtype, DLDevice{kDLCPU, 0});
  std::ifstream data(DataFile(folder, "input", index), std::ios::binary);
  data.read(static_cast<char*>(tensor.data_ptr()), ffi::GetDataSize(tensor));
  if (!data) throw std::runtime_error("input " + std::to_string(index) + " is too short");
  return tensor;
}

void WriteOutput(const ffi::Tensor& tensor, std::size_t index, const std::string& folder,
                 std::ofstream& outputs) {
  const DLDataType dtype = tensor.dtype();
  outputs << int(dtype.code) << ' ' << int(dtype.bits) << ' ' << tensor.ndim();
  for (int64_t dim : tensor.shape()) outputs << ' ' << dim;
  outputs << '\n';
  std::ofstream data(DataFile(folder, "output", index), std::ios::binary);
  data.write(static_cast<const char*>(tensor.data_ptr()), ffi::GetDataSize(tensor));
}

void Run(const std::string& library, const std::string& parameters, const std::string& folder) {
  const ffi::Module program = ffi::Module::LoadFromFile(library);
  const ffi::Module machine =
      program->GetFunction("vm_load_executable", true).value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(int(kDLCPU), 0, kPooledAllocator);

  std::vector<ffi::Any> arguments;
  std::ifstream inputs(folder + "/inputs.txt");
  for (std::string line; std::getline(inputs, line);) {
    arguments.emplace_back(ReadInput(line, arguments.size(), folder));
  }
  const auto weights = ffi::Function::GetGlobalRequired("runtime.LoadParamsFromFile")(parameters)
                           .cast<ffi::Map<ffi::String, ffi::Tensor>>();
  for (std::size_t index = 0; index < weights.size(); ++index) {
    arguments.emplace_back(weights.at(std::to_string(index)));
  }
  const std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
  ffi::Any result;
  machine->GetFunction("main").value().CallPacked(views.data(), views.size(), &result);

  std::ofstream outputs(folder + "/outputs.txt");
  if (const auto single = result.as<ffi::Tensor>()) {
    WriteOutput(*single, 0, folder, outputs);
    return;
  }
  std::size_t index = 0;
  for (const ffi::Tensor& tensor : result.cast<ffi::Array<ffi::Tensor>>()) {
    WriteOutput(tensor, index++, folder, outputs);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: runner LIBRARY PARAMETERS FOLDER\n";
    return 2;
  }
  try {
    Run(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
