// The headers that make the image a PE32+ file as well, and the entry that firmware calls.
//
// Sources: UEFI Specification 2.10, 2.1.1 (images), 2.3.6 (AArch64); Microsoft PE Format. The fields that depend on the
// image's layout are computed in linker/hypervisor.ld.

    .section .text.pe_header, "a"
pe_header:
    .ascii  "PE\0\0"
    // COFF header.
    .short  0xaa64                      // Machine: ARM64
    .short  (pe_sections_end - pe_sections) / 40
    .long   0                           // TimeDateStamp: the same source makes the same file
    .long   0                           // PointerToSymbolTable
    .long   0                           // NumberOfSymbols
    .short  pe_sections - pe_optional_header
    .short  0x0206                      // EXECUTABLE_IMAGE, LINE_NUMS_STRIPPED, DEBUG_STRIPPED
pe_optional_header:
    .short  0x20b                       // PE32+
    .byte   0, 0                        // linker version
    .long   __pe_text_size              // SizeOfCode
    .long   __pe_data_file_size         // SizeOfInitializedData
    .long   0                           // SizeOfUninitializedData
    .long   __pe_entry                  // AddressOfEntryPoint
    .long   4096                        // BaseOfCode
    .quad   0                           // ImageBase
    .long   4096                        // SectionAlignment
    .long   512                         // FileAlignment
    .short  0, 0, 0, 0, 0, 0            // versions of operating system, image and subsystem
    .long   0                           // Win32VersionValue
    .long   __pe_image_size             // SizeOfImage
    .long   4096                        // SizeOfHeaders
    .long   0                           // CheckSum
    .short  10                          // Subsystem: EFI application
    .short  0x100                       // DllCharacteristics: NX_COMPAT, no section is both written and executed
    .quad   0, 0, 0, 0                  // stack and heap
    .long   0                           // LoaderFlags
    .long   6                           // NumberOfRvaAndSizes
    .quad   0, 0, 0, 0, 0               // export, import, resource, exception, certificate
    .long   __pe_reloc, pe_relocations_end - pe_relocations
pe_sections:
    .ascii  ".text\0\0\0"
    .long   __pe_text_size, 4096, __pe_text_size, 4096
    .long   0, 0, 0
    .long   0x60000020                  // code, executed, read
    .ascii  ".data\0\0\0"
    .long   __pe_data_size, __pe_data, __pe_data_file_size, __pe_data
    .long   0, 0, 0
    .long   0xc0000040                  // initialized data, read, written
    .ascii  ".reloc\0\0"
    .long   pe_relocations_end - pe_relocations, __pe_reloc, __pe_reloc_file_size, __pe_reloc_file
    .long   0, 0, 0
    .long   0x42000040                  // initialized data, discardable, read
pe_sections_end:

// No address is left to the firmware: the image relocates itself. Some loaders want to see a table all the same.
    .section .reloc, "a"
pe_relocations:
    .long   0, 12                       // one block for page 0
    .short  0, 0                        // two entries of type ABSOLUTE: nothing to do
pe_relocations_end:

// x0: the image's handle; x1: the system table. The MMU is on with everything mapped at its own address. Returns a status
// where the hypervisor cannot be started.
    .text
    .global efi_entry
efi_entry:
    // X18 belongs to the platform (2.3.6.3), and the compiler uses it.
    stp     x29, x30, [sp, #-48]!
    mov     x29, sp
    stp     x19, x20, [sp, #16]
    stp     x18, x21, [sp, #32]
    mov     x19, x0
    mov     x20, x1
    adrp    x21, image_header
    bl      relocate
    mov     x0, x19
    mov     x1, x20
    mov     x2, x21
    bl      {efi_main}
    ldp     x18, x21, [sp, #32]
    ldp     x19, x20, [sp, #16]
    ldp     x29, x30, [sp], #48
    ret
