# Reads a topology file for the Vagrantfile: nodes, and the private network that each of their adapters is on.
#
# Takes what it needs and is strict about that alone; `lab validate` checks the whole file. A cable between two nodes is
# a network of its own; cables that meet at switches (and switches that are cabled together) are one network.

require "digest"
require "yaml"

# What a virtual machine needs to know of a node. `ports` is a list of Port, in the order of the adapters.
LabNode = Struct.new(:name, :number, :cpus, :memory_mb, :ports)
# `network`: a name unique for checkout and topology; `tap`: the interface on the machine underneath (15 characters).
LabPort = Struct.new(:adapter, :network, :address, :tap)

class LabTopologyError < StandardError; end

class LabTopology
  NODES_MAX = 200 # an address ends in 10 + the node's number
  NETWORKS_MAX = 250
  TAP_MAX = 15
  MEMORY_DEFAULT_MB = 1024
  MEMORY_MIN_MB = 512 # the guest's own system needs that much
  CPUS_DEFAULT = 2
  SIZE_BYTES = {
    "B" => 1, "kB" => 10**3, "MB" => 10**6, "GB" => 10**9, "KiB" => 2**10, "MiB" => 2**20, "GiB" => 2**30
  }.freeze

  attr_reader :name, :nodes

  # `wanted` is a path, or the name of a file in `directory`. Raises LabTopologyError with what was expected and found.
  def initialize(wanted, directory)
    @path = find(wanted, directory)
    @tag = Digest::SHA256.hexdigest(File.expand_path(@path))[0, 4]
    data = mapping(read(@path), "the file")
    @name = data.fetch("name") { fail!("it has no name") }
    @defaults = mapping(data["defaults"] || {}, "defaults")
    @raw_nodes = mapping(data.fetch("nodes") { fail!("it has no nodes") }, "nodes")
    @switches = (data["switches"] || []).to_a.flatten.map(&:to_s)
    @cables = mapping(data["cables"] || {}, "cables").map { |cable, value| [cable.to_s, ends_of(cable, value)] }.to_h
    fail!("it has #{@raw_nodes.size} nodes; virtual machines: at most #{NODES_MAX}") if @raw_nodes.size > NODES_MAX
    @networks = networks
    @nodes = @raw_nodes.each_with_index.map { |(node, value), index| build_node(node.to_s, value || {}, index + 1) }
  end

  private

  def find(wanted, directory)
    candidates = [wanted, File.join(directory, "#{wanted}.yaml")]
    path = candidates.find { |candidate| File.file?(candidate) }
    return path if path

    known = Dir[File.join(directory, "*.yaml")].map { |file| File.basename(file, ".yaml") }.sort
    raise LabTopologyError, "LAB_TOPOLOGY=#{wanted}: no such topology; expected a file, or one of: #{known.join(', ')}"
  end

  def read(path)
    YAML.safe_load(File.read(path), filename: path)
  rescue Psych::Exception, SystemCallError => e
    raise LabTopologyError, e.message
  end

  def fail!(text)
    raise LabTopologyError, "#{@path}: #{text}"
  end

  def mapping(value, what)
    value.is_a?(Hash) ? value : fail!("#{what}: expected a mapping, found #{value.inspect}")
  end

  # The two ends of a cable, each [owner, adapter or nil for a switch].
  def ends_of(cable, value)
    ends = value.is_a?(Hash) ? value["ends"] : value
    unless ends.is_a?(Array) && ends.size == 2
      fail!("cable #{cable}: expected two ends, found #{ends.inspect}")
    end
    ends.map do |text|
      owner, adapter = text.to_s.split(".", 2)
      known = adapter ? adapters(owner).include?(adapter) : @switches.include?(owner)
      fail!("cable #{cable}: no such port or switch: #{text}") unless known
      [owner, adapter]
    end
  end

  def adapters(node)
    return [] unless @raw_nodes.key?(node)

    @defaults.merge(mapping(@raw_nodes[node] || {}, "node #{node}")).fetch("adapters", []).map(&:to_s)
  end

  # {cable => name of its network}. Switches that are cabled together take the name of the first of them.
  def networks
    leader = @switches.to_h { |switch| [switch, switch] }
    @cables.each_value do |(one, _), (other, _)|
      next unless leader.key?(one) && leader.key?(other)

      merged = [leader[one], leader[other]]
      leader.transform_values! { |current| merged.include?(current) ? merged.min : current }
    end
    named = @cables.to_h { |cable, ends| [cable, leader[ends.map(&:first).find { |owner| leader.key?(owner) }] || cable] }
    fail!("more than #{NETWORKS_MAX} networks") if named.values.uniq.size > NETWORKS_MAX
    named
  end

  def build_node(name, value, number)
    settings = @defaults.merge(mapping(value, "node #{name}"))
    ports = adapters(name).filter_map { |adapter| build_port(name, adapter, number) }
    cpus = (settings["cpus"] || CPUS_DEFAULT).ceil
    LabNode.new(name, number, cpus, memory_mb(name, settings["memory"]), ports)
  end

  def build_port(node, adapter, number)
    cable, = @cables.find { |_, ends| ends.include?([node, adapter]) }
    return nil unless cable

    network = @networks[cable]
    subnet = @networks.values.uniq.index(network) + 1
    LabPort.new(adapter, "ccm-#{@tag}-#{network}", "10.77.#{subnet}.#{10 + number}", tap(node, adapter))
  end

  def tap(node, adapter)
    readable = "#{node}-#{adapter}-#{@tag}"
    readable.size <= TAP_MAX ? readable : "ccm-#{Digest::SHA256.hexdigest(readable)[0, 10]}"
  end

  def memory_mb(node, text)
    return MEMORY_DEFAULT_MB if text.nil?

    match = /\A([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)\z/.match(text.to_s)
    unit = match && SIZE_BYTES[match[2]]
    fail!("node #{node}: memory: expected a size such as 512MiB, found #{text.inspect}") unless unit
    [(match[1].to_f * unit / 2**20).ceil, MEMORY_MIN_MB].max
  end
end
