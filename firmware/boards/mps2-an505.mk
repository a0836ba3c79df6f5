# Arm MPS2+ with FPGA image AN505: Cortex-M33, secure state
CPU ?= -mcpu=cortex-m33 -mthumb -mfpu=fpv5-sp-d16 -mfloat-abi=hard
MACHINE = mps2-an505
