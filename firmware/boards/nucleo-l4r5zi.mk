# ST NUCLEO-L4R5ZI: STM32L4R5ZI, Cortex-M4F (compiled here, not run; files and printing through a debugger)
CPU ?= -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard
MACHINE = 
