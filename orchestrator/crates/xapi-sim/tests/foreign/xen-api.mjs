// Logs in with the npm package `xen-api` and lists the VMs, one name per line.
//
// usage: node xen-api.mjs MODULES-DIR URL USER PASSWORD

import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [modules, url, user, password] = process.argv.slice(2)
// Debian 12's Node 18 cannot require() a module of this kind: its path is looked up, and then imported.
const path = createRequire(join(modules, 'package.json')).resolve('xen-api')
const { createClient } = await import(pathToFileURL(path))

const client = createClient({
  url,
  auth: { user, password },
  allowUnauthorized: true,
})
try {
  await client.connect()
  // All objects come by get_all_records first and by events from then on.
  await client.objectsFetched
  for (const object of Object.values(client.objects.all)) {
    if (object.$type === 'VM') {
      console.log(object.name_label)
    }
  }
  // A change comes back as an event.
  const pool = client.pool
  const changed = new Promise(resolve => client.objects.on('update', objects => pool.$id in objects && resolve()))
  await client.call('pool.set_name_description', pool.$ref, `seen by xen-api at ${Date.now()}`)
  await changed
  // An asynchronous call ends through its task.
  const host = client.pool.master
  await client.callAsync('host.get_servertime', host)
} finally {
  await client.disconnect()
}
