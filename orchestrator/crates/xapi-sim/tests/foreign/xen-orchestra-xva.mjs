// Writes an XVA with the npm package `@xen-orchestra/xva`: a VM with one disk.
//
// usage: node xen-orchestra-xva.mjs MODULES-DIR DISK XVA

import { createReadStream, createWriteStream, statSync } from 'node:fs'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { pathToFileURL } from 'node:url'

const [modules, disk, xva] = process.argv.slice(2)
// The package names a main file that it does not have.
const { importVm } = await import(pathToFileURL(join(modules, '@xen-orchestra/xva/importVm.mjs')))

// What the package asks of a pool: a task, and somewhere to put the file.
const pool = {
  task_create: async () => 'OpaqueRef:task',
  putResource: async stream => {
    await pipeline(stream, createWriteStream(xva))
    return 'OpaqueRef:1'
  },
}
const size = statSync(disk).size
// And of a disk: its size, and its bytes.
const vhd = { footer: { currentSize: size }, rawContent: async () => createReadStream(disk) }
const vm = {
  name_label: 'by xen-orchestra',
  memory: 128 * 1024 * 1024,
  nCpus: 1,
  firmware: 'bios',
  vdis: [{ name_label: 'disk', virtual_size: size }],
  vhds: [vhd],
}
await importVm(vm, pool, { $ref: 'OpaqueRef:sr', uuid: '6a9e4b5c-0f62-4c27-8d57-6f1f5d1c0d11', name_label: 'sr' })
