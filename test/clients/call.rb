# call.rb KEY AMOUNT: calls pay_activerecord.rb as others are called.

require 'active_record'
require 'json'

ActiveRecord::Base.establish_connection(
  adapter: 'postgresql', host: ENV['PGHOST'], port: ENV['PGPORT'], username: ENV['PGUSER'],
  database: ENV['PGDATABASE']
)

class Payment < ActiveRecord::Base
  self.table_name = 'payment'
end

require './pay_activerecord'
puts pay(ARGV[0], ARGV[1].to_i).join(' ')
