# Arm MPS2 with FPGA image AN500: Cortex-M7F
CPU ?= -mcpu=cortex-m7 -mthumb -mfpu=fpv5-sp-d16 -mfloat-abi=hard
MACHINE = mps2-an500
